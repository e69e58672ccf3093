"""The page itself: a Jinja template, filled."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from kdseg import __version__
from kdseg.config import Config
from kdseg.errors import masked
from kdseg.report.curves import styles, sweep_figures, threshold_figures, training_figures
from kdseg.report.figures import CONFIG, INK, STYLES, library
from kdseg.report.graph import graph
from kdseg.report.landscape import HEADS, landscapes, legend
from kdseg.report.overlap import overlaps
from kdseg.report.results import Results
from kdseg.report.slices import sections
from kdseg.report.table import COLUMNS, MISSING, TUNED_COLUMNS, Row, cell, least, notes
from kdseg.report.unknown import unknown
from kdseg.report.verdict import Verdict, headline

LIBRARIES = ("numpy", "zarr", "torch", "dask", "daisy", "waterz", "snakemake", "altair", "vl-convert-python")


@dataclass(frozen=True)
class Timing:
    """Time and resources of one stage; texts, ready to be shown."""

    stage: str
    result: str
    seconds: str
    rate: str
    peak: str
    device: str
    finished: str


def page(results: Results, table: list[Row], tuned: list[Row], found: list[Verdict], made: datetime) -> str:
    """Return the report as one HTML document that refers to nothing outside of itself.

    Args:
        results: what is there.
        table: the rows to show.
        tuned: the rows of the part that thresholds were chosen on, and of the rest; may be empty.
        found: the verdicts to show.
        made: time of the report.
    """
    return template("page.html").render(
        config=results.config,
        headline=headline(found),
        outcome=overall(found),
        verdicts=found,
        notes=[
            *overlaps(results.config),
            *dict.fromkeys(text for verdict in found for text in verdict.notes),
            *unknown(results),
        ],
        columns=COLUMNS,
        table=table,
        tuned=tuned,
        tuned_columns=TUNED_COLUMNS,
        cell=cell,
        small=notes,
        missing=MISSING,
        least={key: least(table, key) for key in ("voi_split", "voi_merge", "voi", "arand")},
        legends=_legends(results),
        training=training_figures(results),
        sweeps=sweep_figures(results),
        thresholds=threshold_figures(results),
        landscapes=landscapes(results),
        landscape_heads=HEADS,
        sections=sections(results),
        graph=graph(results),
        timings=timings(results),
        yaml=config_yaml(results.config),
        versions=versions(results),
        made=made,
    )


def template(name: str) -> Template:
    """Return one of the templates beside this module; it knows how charts are drawn."""
    environment = Environment(
        loader=PackageLoader("kdseg", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(ink=INK, style_count=STYLES, chart_config=CONFIG, chart_library=library)
    return environment.get_template(name)


def overall(found: list[Verdict]) -> str:
    """Return the outcome that all verdicts share, ``"mixed"`` where they do not."""
    outcomes = {verdict.outcome for verdict in found}
    return outcomes.pop() if len(outcomes) == 1 else "mixed"


def timings(results: Results) -> list[Timing]:
    """Return a row per finished manifest, in the order of the stages."""
    return [
        Timing(
            manifest.stage,
            key,
            _number(results.number(key, "seconds"), 2),
            _number(results.rate(key), 3),
            _number(results.number(key, "peak_mb"), 0),
            str(results.stats(key).get("device") or ""),
            manifest.finished.replace("T", " ").removesuffix("+00:00"),
        )
        for key, manifest in results.manifests.items()
    ]


def versions(results: Results) -> dict[str, str]:
    """Return the versions of what made the report, and of the kdseg that made the results."""
    found = {"kdseg (report)": __version__, "python": platform.python_version()}
    made_by = sorted({manifest.version for manifest in results.manifests.values()})
    found["kdseg (results)"] = ", ".join(made_by)
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def config_yaml(config: Config) -> str:
    """Return a configuration as YAML, defaults filled in."""
    values = config.model_dump(mode="json")
    return masked(yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=110))


def _legends(results: Results) -> dict[str, list[tuple[str, str]]]:
    """Return the names and classes of the lines of each group of charts."""
    scored = [*results.config.evaluate.models, *(["baseline"] if _has_baseline(results) else [])]
    numbers = styles(results)
    groups = {"sweeps": scored, "thresholds": results.config.evaluate.models, "training": [*results.curves]}
    found = {group: [(name, _style_class(numbers[name])) for name in names] for group, names in groups.items()}
    return {**found, "landscapes": [(name, _style_class(number)) for name, number in legend()]}


def _style_class(number: int) -> str:
    """Return the style sheet's classes of a colour number: eight colours, then the same dashed."""
    return f"s{number % STYLES}" + (" dashed" if number // STYLES % 2 else "")


def _has_baseline(results: Results) -> bool:
    return any(key.startswith("baseline/") for key in results.manifests)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"
