"""Findings of a check: what of a configuration will not work, or not as one may think."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """One finding.

    Attributes:
        option: to change.
        text: what was found, and what to do; one line.
        error: the run would stop; else it would go on, to a result that is not what one may think.
    """

    option: str
    text: str
    error: bool = True

    def __str__(self) -> str:
        return f"{'error' if self.error else 'warning'}: {self.option}: {self.text}"


def refusal(option: str, error: Exception) -> Finding:
    """Return the finding that an error is, on one line."""
    return Finding(option, " ".join(str(error).split()))
