"""All trials → one page that compares methods of distillation, and the same as text, CSV, JSON and SVG."""

from __future__ import annotations

import logging
from dataclasses import asdict
from datetime import UTC, datetime

from kdseg import __version__
from kdseg.config.tasks import CompareTask
from kdseg.report.comparison import collect
from kdseg.report.comparison_notes import notes
from kdseg.report.comparison_page import budget, figures, page
from kdseg.report.comparison_table import aligned, sentence, table_csv, table_text, trials_csv
from kdseg.report.figures import standalone
from kdseg.report.rates import rate_table
from kdseg.results.files import write_text
from kdseg.results.manifests import write_json

log = logging.getLogger(__name__)


def run(task: CompareTask) -> None:
    """Write the comparison, each file whole or not at all.

    Beside ``compare.html`` come ``compare.txt``, ``compare.csv`` (a row per method), ``compare_trials.csv`` (a row
    per trial), ``compare.json`` and ``compare.svg``.
    """
    config, out = task.config, task.out
    comparison = collect(config)
    volumes = config.trial.volumes
    made = datetime.now(UTC)
    remarks = "".join(f"{note}\n" for note in notes(comparison))
    tables = "\n".join(f"{sentence(comparison, volume)}\n\n{table_text(comparison, volume)}" for volume in volumes)
    rates = rate_table(config, comparison.choices)
    tried = aligned(rates, [k == 0 for k in range(len(rates[0]))]) if rates else ""
    text = f"{tables}\n{budget(comparison)}\n{tried}{remarks}"
    log.info("%s", text)
    values = {
        "title": config.title,
        "sentences": {volume: sentence(comparison, volume) for volume in volumes},
        "notes": notes(comparison),
        "rows": [asdict(entry) for entry in comparison.entries],
        "trials": comparison.trials,
        "learning_rates": comparison.choices,
        "kdseg": __version__,
        "made": made.isoformat(timespec="seconds"),
    }
    charts = [figure.chart for volume in volumes for figure in figures(comparison, volume)]
    write_text(out.with_suffix(".txt"), text)
    write_text(out.with_suffix(".csv"), table_csv(comparison))
    write_text(out.with_name(f"{out.stem}_trials.csv"), trials_csv(comparison))
    write_json(out.with_suffix(".json"), values)
    write_text(out.with_suffix(".svg"), standalone(charts))
    # The page is what a workflow waits for: it comes last.
    write_text(out, page(comparison, made))
