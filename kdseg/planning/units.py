"""Figures of a plan as short texts, in the unit that suits each."""

from __future__ import annotations

MINUTE, HOUR, DAY = 60, 3600, 24 * 3600
_TIMES = ((DAY, "d"), (HOUR, "h"), (MINUTE, "min"), (1, "s"))
_BYTES = ((10**15, "PB"), (10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"), (1, "B"))
_COUNTS = ((10**15, "P"), (10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"), (1, ""))


def time_text(seconds: float) -> str:
    """Return seconds in seconds, minutes, hours or days."""
    return _scaled(seconds, _TIMES)


def bytes_text(size: float) -> str:
    """Return bytes in powers of 1000."""
    return _scaled(size, _BYTES)


def count_text(count: float) -> str:
    """Return a number of things in thousands, millions and so on, as far as it has them."""
    return _scaled(count, _COUNTS)


def figure_text(value: float) -> str:
    """Return a figure with three digits, and all those before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _scaled(value: float, units: tuple[tuple[int, str], ...]) -> str:
    """Return a figure in the largest unit that it has one of; 0 and less than one of the smallest in that."""
    at = next((at for at, (size, _) in enumerate(units) if value >= size), len(units) - 1)
    while at > 0 and float(f"{value / units[at][0]:.3g}") * units[at][0] >= units[at - 1][0]:
        at -= 1  # 999.9 MB are 1 GB
        value = max(value, units[at][0])
    size, name = units[at]
    return f"{figure_text(value / size)} {name}".rstrip()
