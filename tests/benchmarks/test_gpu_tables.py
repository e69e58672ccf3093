"""Tables of what was measured on a GPU: every row is there, and what is missing is said to be."""

from __future__ import annotations

from tables import rates_table, training_table

TILE = {
    "network": "4,8,16",
    "tile": 128,
    "how": "product",
    "mvox_per_s": 1234.5,
    "ms": 1.7,
    "features_ms": 1.2,
    "gflop": 12.8,
    "gflop_done": 30.1,
    "peak_mb": None,
}
STAGE = {
    "mvox_per_s": 300.0,
    "of_bare": 0.243,
    "first_block_s": 9.5,
    "worker_seconds": {"read": 1.5, "wait": 0.25, "compute": 0.5, "write": 3.0},
    "cpu_s": 40.0,
    "pcie_mb": [150.0, 1208.0],
}


def row(job: str, key: str, **values: object) -> dict[str, object]:
    return {"job": job, "key": key, "at": "2026-11-26T00:00:00Z", **values}


def lines(table: str) -> dict[str, list[str]]:
    """Cells by the first one of their line; all lines of a table have as many cells as its head."""
    found = {}
    for part in table.split("\n\n"):
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines()]
        assert len({len(line) for line in cells}) == 1
        found |= {line[0]: line[1:] for line in cells}
    return found


def test_prediction() -> None:
    floor = {"roofline_ms": 0.5, "roofline_of": "memory", "roofline_share": 0.294, "pcie_ms": 0.4}
    rows = [
        row("rates", "limits", device="H100", copy_gb_per_s=3001.0),
        row("rates", "tile/4,8,16/128/product", **TILE, **floor),
        row("rates", "tile/4,8,16/128/graph", **TILE | {"how": "graph", "mvox_per_s": 4000.0}),
        row("rates", "tile/4,8,16/512/product", error="OutOfMemoryError: a | b"),
        row("rates", "predict/512/256/disk", **STAGE),
        row("rates", "fuse/512/256/disk", **STAGE | {"mvox_per_s": 2000.0}),
        row("training_rates", "step/x/2x64", error="of another job"),
    ]
    found = lines(rates_table(rows))
    assert found["copy_gb_per_s"] == ["3001"]
    assert found["4,8,16/128/product"][:4] == ["1234", "1.7", "1.2", "0.5 (memory)"]
    assert found["4,8,16/128/product"][-1] == found["4,8,16/128/graph"][3] == "not measured"
    assert found["4,8,16/512/product"][:2] == ["OutOfMemoryError: a / b", ""]
    assert found["predict/512/256/disk"] == ["300", "0.243", "9.5", "1.5, 0.25, 0.5, 3", "40", "150 in, 1208 out"]
    assert found["bare tiles, Mvox/s"] == ["at least 1000", "1234"]  # not the graph, which the product does not use
    assert found["stage, Mvox/s"] == ["at least 278", "300"]  # not the fused one
    assert "another job" not in rates_table(rows)


def test_training() -> None:
    step = {"kernels": "deterministic", "batch": 2, "crop": 64, "mvox_per_s": 50.0, "peak_mb": 900.0}
    wait = {"crops_per_s": 200.0, "mvox_per_s_per_core": 13.1, "step_ms": 8.0, "loop_ms": 10.0, "wait_share": 0.2}
    rows = [
        row("training_rates", "step/student alone/2x64", case="student alone", ms=8.0, **step),
        row("training_rates", "step/student alone/2x64/any kernels", case="student alone", ms=4.0, **step),
        row("training_rates", "step/ft/2x64", case="ft", ms=20.0, **step),
        row("training_rates", "step/ft/8x64", case="ft", ms=60.0, **step | {"batch": 8}),
        row("training_rates", "step/mgd/2x64", error="RuntimeError: no"),
        row("training_rates", "loader/4/student alone/2x64", **wait),
    ]
    found = lines(training_table(rows))
    assert found["ft/2x64"] == ["20", "2.5", "50", "900"]
    assert found["ft/8x64"][1] == "not measured"
    assert found["mgd/2x64"][0] == "RuntimeError: no"
    assert found["4/student alone/2x64"] == ["200", "13.1", "8", "10", "0.2"]


def test_nothing_measured() -> None:
    found = lines(rates_table([])) | lines(training_table([]))
    assert found["not measured"][0] == ""
    assert found["stage, Mvox/s"] == ["at least 278", "not measured"]
    assert rates_table([]).count("| not measured |") == 3 + 3
    assert training_table([]).count("| not measured |") == 2
