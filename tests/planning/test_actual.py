"""What finished jobs took, from the files that they and Snakemake leave."""

import pytest

from kdseg.planning.actual import actual
from kdseg.planning.jobs import Job
from kdseg.results.claims import claim
from kdseg.results.manifests import read

JOB = Job("edges", "net/test/edges.json")


def finish(folder, benchmark):
    with claim(folder / JOB.manifest, "edges", {}, {}) as held:
        held.stats["voxels"] = 5
    if benchmark is not None:
        path = folder / "net/test/benchmarks/edges.tsv"
        path.parent.mkdir()
        path.write_text("\t".join(benchmark) + "\n" + "\t".join(benchmark.values()) + "\n")
    return read(folder / JOB.manifest).stats["cpu_s"]


@pytest.mark.parametrize("sampled", ["0.01", "NA", None])
def test_a_job_counts_cpu_seconds_that_snakemake_does_not_see(tmp_path, sampled):
    benchmark = None if sampled is None else {"s": "7.5", "max_rss": "100", "cpu_time": sampled}
    counted = finish(tmp_path, benchmark)
    found = actual(tmp_path, JOB)
    assert (found.cpu_s, found.seconds) == (counted, None if sampled is None else 7.5)


def test_snakemake_sees_workers_that_the_job_does_not(tmp_path):
    finish(tmp_path, {"s": "7.5", "max_rss": "100", "cpu_time": "1e6"})
    assert actual(tmp_path, JOB).cpu_s == 1e6


def test_a_job_that_has_not_finished_took_nothing(tmp_path):
    assert actual(tmp_path, JOB) is None
