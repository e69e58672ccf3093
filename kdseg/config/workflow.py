"""Where the files of the workflow are: its Snakefile, rules, environments, profiles and example configurations."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED = _PACKAGE / "workflow"
FOLDER = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent
"""Within the package, where a wheel has them (setup.py), else at the top of the repository."""
SNAKEFILE = FOLDER / "Snakefile"
EXAMPLES = FOLDER / "config"
DEFAULTS = FOLDER / "profiles" / "default"
"""Profile that every run of the workflow uses."""


def profile(name: str) -> str:
    """Return the folder of a profile of the workflow by its name; any other is left for Snakemake to find."""
    ours = FOLDER / "profiles" / name
    return str(ours) if Path(name).name == name and (ours / "config.yaml").is_file() else name  # ./slurm is the user's
