"""The curve of a training run: one row of numbers per step, in a CSV file that only grows."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from io import StringIO
from itertools import pairwise
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Self

from kdseg.errors import UnreadableError
from kdseg.results.files import write_text


class Curve:
    """An open curve; use it in a ``with`` block."""

    def __init__(self, path: Path, columns: Sequence[str], *, keep: int) -> None:
        """Open a curve to append to.

        Args:
            path: created if need be.
            columns: the first one is ``step``.
            keep: rows up to this step stay, later ones (of a run that was killed) are dropped.

        Raises:
            UnreadableError: if the disk refuses.
        """
        self.columns = list(columns)
        rows = [row for row in read_curve(path) if int(row["step"]) <= keep]
        kept = StringIO()
        writer = csv.DictWriter(kept, self.columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        write_text(path, kept.getvalue())
        try:
            self._file = path.open("a", newline="")
        except OSError as error:
            raise UnreadableError(f"cannot write {path}: {error}") from None
        self._writer = csv.DictWriter(self._file, self.columns)

    def append(self, row: Mapping[str, float | int]) -> None:
        """Write one row at once; columns that are not given stay empty."""
        self._writer.writerow({k: v if isinstance(v, int) else _text(v) for k, v in row.items()})
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()


def read_curve(path: Path) -> list[dict[str, str]]:
    """Return the rows of a curve, none if there is no file; a row that was cut off is left out.

    Raises:
        UnreadableError: if it holds anything but numbers, rising steps first.
    """
    if not path.is_file():
        return []
    try:
        # a row that was cut off has no line break, or, if the run went on before this was read, too few values
        whole = path.read_bytes().decode("ascii").rpartition("\n")[0]
        rows = list(csv.DictReader(whole.splitlines(), strict=True))
        rows = [row for row in rows if None not in row.values()]
        for row in rows:
            _expect_numbers(row)
        if any(int(before["step"]) >= int(row["step"]) for before, row in pairwise(rows)):
            raise ValueError("its steps do not rise")
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise UnreadableError(
            f"{path} is damaged, or no curve of a training: {error}; delete it, the training goes on without the rows "
            "so far"
        ) from None
    return rows


def _expect_numbers(row: Mapping[str, str]) -> None:
    if None in row:
        raise ValueError(f"step {row['step']} has more values than there are columns")
    if not row["step"].isdigit():
        raise ValueError(f"expected the number of a step, got {row['step']!r}")
    for text in row.values():
        float(text or 0)


def _text(value: float) -> str:
    # Six digits, and three decimals of what is large: seconds of long runs must still tell steps apart.
    return f"{value:.6g}" if abs(value) < 1000 else f"{value:.3f}"


def seconds_per_step(path: Path, *, skip: int = 10) -> float | None:
    """Return the median time of a training step in seconds, None where the curve does not tell.

    Args:
        path: a curve with the column ``seconds``, counted from the start of the run.
        skip: first steps to leave out, which warm up. Steps that validated are left out too.
    """
    rows = read_curve(path)
    times = [
        float(row["seconds"]) - float(before["seconds"])
        for before, row in pairwise(rows)
        if before.get("seconds")
        and row.get("seconds")
        and int(row["step"]) > skip
        and int(row["step"]) == int(before["step"]) + 1
        and not (row.get("voi") or row.get("agreement_voi"))
    ]
    return round(median(times), 6) if times else None
