"""``python -m kdseg``."""

from kdseg.cli import main

main(prog_name="kdseg")
