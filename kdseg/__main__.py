"""``python -m kdseg``."""

from kdseg.cli import main

main()
