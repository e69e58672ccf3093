"""All that is below the folder of results → one HTML page, the table as text, a summary as JSON."""

from __future__ import annotations

import logging
from dataclasses import asdict
from datetime import UTC, datetime

from kdseg import __version__
from kdseg.config.tasks import ReportTask
from kdseg.report.overlap import overlaps
from kdseg.report.page import page
from kdseg.report.results import collect
from kdseg.report.table import TUNED_COLUMNS, rows, table_text, tuned_rows
from kdseg.report.unknown import unknown
from kdseg.report.verdict import headline, verdicts
from kdseg.results.files import write_text
from kdseg.results.manifests import write_json

log = logging.getLogger(__name__)


def run(task: ReportTask) -> None:
    """Write the report of a run, whole or not at all, with ``report.txt`` and ``summary.json`` beside it."""
    config, out = task.config, task.out
    results = collect(config)
    table, tuned = rows(results), tuned_rows(results)
    found = verdicts(config, table)
    made = datetime.now(UTC)
    shared = overlaps(config)
    lines = [*shared, *(note for verdict in found for note in verdict.notes), *unknown(results)]
    notes = "".join(f"{line}\n" for line in lines)
    text = f"{headline(found)}\n{notes}\n{table_text(table)}"
    if tuned:
        text += f"\nWhere thresholds were chosen on a part\n{table_text(tuned, TUNED_COLUMNS)}"
    log.info("%s", text)
    summary = {
        "title": config.title,
        "verdict": headline(found),
        "overlaps": shared,
        "unknown": unknown(results),
        "verdicts": [asdict(verdict) for verdict in found],
        "rows": [asdict(row) for row in table],
        "tuned": [{column.key: getattr(row, column.key) for column in TUNED_COLUMNS} for row in tuned],
        "kdseg": __version__,
        "made": made.isoformat(timespec="seconds"),
    }
    write_text(out.with_name("report.txt"), text)
    write_json(out.with_name("summary.json"), summary)
    # The page is what a workflow waits for: it comes last.
    write_text(out, page(results, table, tuned, found, made))
