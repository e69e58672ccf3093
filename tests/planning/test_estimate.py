"""Arithmetic of a plan, against sums by hand."""

import re
from dataclasses import replace

import pytest
import yaml
from command import invoke

from kdseg.config import validate
from kdseg.errors import ConfigError, UnreadableError
from kdseg.planning.actual import Actual
from kdseg.planning.estimate import Prices, estimate, makespan, total
from kdseg.planning.jobs import Job
from kdseg.planning.plan import Plan, make_plan
from kdseg.planning.table import notes, table, took_table
from kdseg.planning.timings import Timing, Timings, enough, of_two, read_timings, timed_options, write_timings

TIMINGS = {
    "fast": Timing(start_s=2, start_cpu_s=3, unit_s=0.5, unit_cpu_s=1, voxel_bytes=2, fixed_bytes=7),
    "more": Timing(start_s=4, start_cpu_s=1, unit_s=0.1, unit_cpu_s=0.2),
}


def a_job(manifest="m.json", needs=(), cores=1, workers=1, blocks=10, **work):
    return Job("stage", manifest, voxels=100, blocks=blocks, work=work, needs=needs, cores=cores, workers=workers, mb=5)


def test_a_job_is_its_start_and_its_work():
    found = estimate(a_job(fast=10), TIMINGS)
    assert (found.seconds, found.cpu_s, found.gpu_s, found.size) == (2 + 5, 3 + 10, 0, 7 + 200)


def test_a_job_of_two_kinds_of_work_starts_once():
    found = estimate(a_job(fast=10, more=100), TIMINGS)
    assert (found.seconds, found.cpu_s) == (4 + 5 + 10, 3 + 10 + 20)


@pytest.mark.parametrize(("workers", "blocks", "seconds"), [(5, 10, 2 + 1), (10, 5, 2 + 1), (1, 10, 2 + 5)])
def test_workers_share_the_work_as_far_as_there_are_blocks(workers, blocks, seconds):
    found = estimate(a_job(workers=workers, blocks=blocks, fast=10), TIMINGS)
    assert found.seconds == seconds
    assert found.cpu_s == 13


def test_how_many_workers_a_scheduler_has_is_not_invented():
    found = estimate(a_job(workers=None, fast=10), TIMINGS)
    assert (found.seconds, found.cpu_s, found.gpu_s, found.missing) == (None, 3 + 10, 0, ())
    assert total([found], cores=2)["wall_s"] is None
    on_gpus = Job("predict", "m.json", blocks=10, work={"fast": 10}, workers=None, gpus=None)
    assert estimate(on_gpus, TIMINGS).gpu_s is None
    assert estimate(a_job(workers=None, blocks=1, fast=10), TIMINGS).seconds == 2 + 5


def test_the_steps_of_a_training_come_one_after_the_other():
    job = Job("train", "m.json", blocks=10, work={"fast": 10}, workers=8, gpus=2)
    found = estimate(job, TIMINGS)
    assert (found.seconds, found.gpu_s) == (7, 14)


def test_what_was_not_timed_is_not_invented():
    job = a_job(fast=1, unknown=1)
    found = estimate(job, TIMINGS)
    assert (found.seconds, found.cpu_s, found.gpu_s, found.missing) == (None, None, 0, ("unknown",))
    assert found.size == 7 + 200  # what it stores was timed
    unsized = estimate(a_job(unknown=1, fast=1), TIMINGS)
    assert unsized.size is None
    summed = total([unsized, estimate(a_job("n.json", fast=1), TIMINGS)], cores=2)
    assert (summed["wall_s"], summed["cpu_s"], summed["bytes"]) == (None, None, None)


def test_samples_that_took_equally_long_tell_what_large_volumes_take_at_most():
    """The larger one of 5 units of work took 2 s, or 3 s of CPU: all for these units, or all but little to start."""
    flat = {"fast": Timing(start_s=1.5, unit_s=0.1, start_cpu_s=3, most=10)}
    within = estimate(a_job(fast=10, blocks=1), flat)
    assert (within.seconds, within.cpu_s, within.bounded) == (2.5, 3, ())
    beyond = estimate(a_job(fast=100, blocks=1), flat)
    assert (beyond.seconds, beyond.cpu_s, beyond.bounded, beyond.missing) == (1.5 + 40, 3 + 60, ("fast",), ())
    shared = estimate(a_job(fast=100, blocks=1000, workers=1000), flat)
    assert (shared.seconds, shared.cpu_s) == (1.5 + 0.04, 3 + 60)


def test_jobs_wait_for_what_they_need_and_for_cores():
    first, second = a_job("a", fast=0), a_job("b", fast=2)
    last = a_job("c", ("a", "b"), fast=4)
    both = [estimate(one, TIMINGS) for one in (first, second, last)]
    assert [one.seconds for one in both] == [2, 3, 4]
    assert makespan(both, cores=1) == 2 + 3 + 4
    assert makespan(both, cores=2) == 3 + 4


def test_a_job_that_wants_more_cores_than_there_are_has_all_of_them():
    wide = [estimate(a_job(name, cores=8, blocks=1, fast=2), TIMINGS) for name in "ab"]
    assert makespan(wide, cores=4) == 6
    assert makespan(wide, cores=16) == 3


def test_costs_are_of_what_has_a_price():
    assert Prices(cpu_hour=2).cost(1800, 3600, 5e9) == 1
    assert Prices(2, 10, 0.1).cost(1800, 3600, 5e9) == pytest.approx(1 + 10 + 0.5)
    assert Prices().cost(1800, 3600, 5e9) is None
    assert Prices(gpu_hour=10).cost(1800, None, 5e9) is None


def test_two_samples_tell_start_and_unit():
    small = {"work": 10, "seconds": 7, "cpu_s": 3, "mb": 50, "bytes": 20, "voxels": 10}
    large = {"work": 30, "seconds": 11, "cpu_s": 2, "mb": 40, "bytes": 90, "voxels": 30}
    expected = Timing(start_s=5, unit_s=0.2, start_cpu_s=3, unit_cpu_s=0, voxel_bytes=3, mb=50, most=60)
    assert of_two(small, large).model_dump() == pytest.approx(expected.model_dump())
    busy = of_two({**small, "seconds": 12, "cpu_s": 5}, {**large, "cpu_s": 15})
    assert (busy.unit_s, busy.unit_cpu_s, busy.start_s, busy.most) == (0.5, 0.5, 7, None)
    same = of_two(small, small)
    assert (same.start_s, same.fixed_bytes, same.voxel_bytes) == (7, 0, 2)


def test_two_samples_tell_what_is_stored_whatever_the_volume():
    small = {"work": 10, "seconds": 7, "cpu_s": 3, "mb": 50, "bytes": 500, "voxels": 10}
    large = {**small, "work": 30, "bytes": 540, "voxels": 30}
    found = of_two(small, large)
    assert (found.fixed_bytes, found.voxel_bytes) == (480, 2)


@pytest.mark.parametrize(
    ("cpu_s", "needed", "expected"), [(14, 100, False), (16, 100, True), (10, 60, True), (10, 61, False)]
)
def test_a_larger_sample_follows_where_two_do_not_tell_what_a_job_takes(cpu_s, needed, expected):
    small = {"work": 10, "seconds": 10, "cpu_s": 10}
    assert enough(small, {"work": 30, "seconds": 20, "cpu_s": cpu_s}, needed) is expected


def test_timings_are_kept_and_what_is_damaged_is_refused(tmp_path, values):
    config, path = validate(values), tmp_path / "timings.json"
    options = timed_options(config)
    timings = Timings(machine="m", options=options, sample=(1, 2, 3), timings=TIMINGS, missing={"x": "why"})
    write_timings(path, timings)
    assert read_timings(path, config) == timings
    path.write_text(path.read_text().replace('"machine": "m"', '"machine": "n"'))
    with pytest.raises(UnreadableError, match="--save"):
        read_timings(path, config)


def test_timings_are_those_of_one_configuration(tmp_path, values):
    path = tmp_path / "timings.json"
    options = timed_options(validate(values))
    write_timings(path, Timings(machine="m", options=options, sample=(1, 2, 3), timings=TIMINGS, missing={}))
    values["models"]["teacher"]["train"]["steps"] = 10**6
    values |= {"workers": 7, "volumes": {**values["volumes"], "more": {"phantom": {"shape": [64, 64, 64]}}}}
    read_timings(path, validate(values))
    values["models"]["teacher"]["network"]["widths"] = [8, 32]
    with pytest.raises(ConfigError, match=r"teacher\.network\.widths was \[8, 16\], is \[8, 32\]"):
        read_timings(path, validate(values))


def test_a_volume_that_is_not_there_is_refused_before_anything_is_timed(tmp_path, values):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    said = invoke("plan", path, "--volume", "nope", "--shape", "64", "64", "64")
    assert said.exit_code == 1
    assert "there is no volume 'nope'" in said.stderr
    said = invoke("plan", path, "--volume", "tune")
    assert "give that, too" in said.stderr


def cells(text):
    return [re.split(r"  +", line) for line in text.splitlines()]


def test_the_table_says_what_is_not_known_and_sums_the_rest():
    flat = {**TIMINGS, "flat": Timing(start_s=1440, start_cpu_s=1440, most=8000)}
    timings = Timings(machine="m", options={}, sample=(1, 2, 3), timings=flat, missing={"never": "it is a search"})
    work = ({"fast": 7200}, {"never": 1}, {"flat": 16000}, {"other": 1})
    plan = make_plan([a_job(f"{i}.json", **one) for i, one in enumerate(work)], timings, None, 2, Prices(cpu_hour=1))
    rows = cells(table(plan))
    assert rows[0] == ["stage", "model", "voxels", "blocks", "CPU", "wall", "stored", "asks for", "cost"]
    assert rows[1] == ["stage", "100", "10", "2 h", "1 h", "207 B", "5 MB", "2"]
    assert rows[2] == ["stage", "100", "10", "?", "?", "?", "5 MB", "?"]
    assert rows[3] == ["stage", "100", "10", "<=2 h", "<=2 h", "0 B", "5 MB", "<=2"]
    assert rows[5] == ["total", "on 2 cores", "400", "40", ">=2 h", ">=1 h", ">=207 B", "5 MB", ">=2"]
    said = "\n".join(notes(plan, timings))
    assert "? of never: it is a search" in said
    assert (
        "<= of flat: a sample of 4 k voxels took about as long as a smaller one, which does not tell what more" in said
    )
    assert "? of other: it is not in these timings" in said
    assert plan.as_json()["jobs"][1]["not_measured"] == ["never"]
    assert plan.as_json()["jobs"][2]["at_most"] == ["flat"]
    assert plan.as_json()["total"]["cpu_s"] is None


def test_sums_of_what_is_known_at_most_are_that_too():
    flat = {"flat": Timing(start_s=2, start_cpu_s=4, most=2), **TIMINGS}
    timings = Timings(machine="m", options={}, sample=(1, 2, 3), timings=flat, missing={})
    jobs = [a_job("a.json", flat=899), a_job("b.json", fast=7197)]
    rows = cells(table(make_plan(jobs, timings, None, 1, Prices(cpu_hour=1))))
    assert rows[-1] == ["total", "on 1 cores", "200", "20", "<=3 h", "<=1.5 h", "207 B", "5 MB", "<=3"]


def test_the_table_has_columns_of_what_there_is():
    timings = Timings(machine="m", options={}, sample=(1, 2, 3), timings=TIMINGS, missing={})
    on_gpu = Job("train", "m.json", "net", blocks=10, work={"fast": 10}, gpus=2)
    rows = cells(table(make_plan([on_gpu], timings, None, 2, Prices())))
    assert rows[0] == ["stage", "model", "voxels", "blocks", "CPU", "GPU", "wall", "stored", "asks for"]
    assert rows[1] == ["train", "net", "0", "10", "13 s", "14 s", "7 s", "7 B", "0 B"]
    found = make_plan([a_job(workers=None, fast=10)], timings, None, 2, Prices())
    assert cells(table(found))[2][4:] == ["13 s", ">=0 s", "207 B", "5 MB"]
    assert any("Dask" in line for line in notes(found, timings))


def test_finished_jobs_stand_below_with_their_share_of_the_plan():
    timings = Timings(machine="m", options={}, sample=(1, 2, 3), timings=TIMINGS, missing={}, load=4.2)
    estimates = [estimate(a_job(name, fast=10), TIMINGS) for name in ("m.json", "n.json", "o.json")]
    took = {
        "m.json": Actual(seconds=14.0, cpu_s=26.0, mb=2.5, size=414, voxels=100, blocks=10),
        "n.json": Actual(seconds=None, cpu_s=None, mb=None, size=0, voxels=100, blocks=10),
    }
    plan = Plan(estimates, took, 2, Prices())
    rows = cells(took_table(plan))
    assert rows[1] == ["stage", *("26 s", "200 %"), *("14 s", "200 %"), *("414 B", "200 %"), *("2.5 MB", "50 %")]
    assert rows[2] == ["stage", *("?", "?"), *("?", "?"), *("0 B", "0 %"), *("?", "?")]
    assert rows[3] == ["total", "of 2 jobs", *("26 s", "200 %"), *("414 B", "100 %"), *("2.5 MB", "50 %")]
    said = "\n".join(notes(plan, timings))
    assert "4.2 other processes shared these cores" in said
    assert "no benchmark" in said


def test_a_plan_of_large_volumes_fits_a_terminal():
    job = Job("predict", "a/affinities.json", "student_alone", "unlabelled", 10**15, 3818360547, {"slow": 10**15})
    slow = {"slow": Timing(unit_s=1e-6, unit_cpu_s=1.1e-6, voxel_bytes=9.04)}
    timings = Timings(machine="m", options={}, sample=(1, 2, 3), timings=slow, missing={})
    job = replace(job, mb=127302000, workers=100000)
    plan = make_plan([job], timings, None, 100000, Prices(cpu_hour=0.04))
    took = Plan(plan.estimates, {"a/affinities.json": Actual(12345.6, 59.97, 99.9, 10**15, 10**15, 1)}, 2, Prices())
    assert max(map(len, f"{table(plan)}\n{took_table(took)}".splitlines())) <= 120
