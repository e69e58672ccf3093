"""Jobs of SLURM that run Dask workers: submitted through dask-jobqueue, watched, and submitted again.

dask-jobqueue forgets a job when its worker leaves the scheduler. Of jobs whose worker never came, a module that
cannot be loaded or a node that is broken, only SLURM knows: `squeue` is asked.
"""

from __future__ import annotations

import copy
import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from distributed import Security, Status

from kdseg.config.cluster import SlurmOptions
from kdseg.errors import ConfigError, StageError

log = logging.getLogger(__name__)

ASK_S = 60.0
"""Seconds between two looks at SLURM's queue; then jobs that it refused, or that are gone, are submitted again."""
ON_LOOPBACK = "127.0.0.1:0"
"""Address of what only processes of the same machine may reach, at any port."""


class Jobs:
    """The jobs of one run.

    Attributes:
        cluster: of Dask, whose workers they run.
    """

    def __init__(self, options: SlurmOptions, cluster: Any, refused: list[str]) -> None:
        self.cluster, self._options, self._refused = cluster, options, refused
        self._submitted: set[str] = set()
        self._asked = time.monotonic()
        cluster.scale(jobs=options.jobs)

    def check(self) -> None:
        """See whether a first worker can be hoped for.

        Raises:
            StageError: if SLURM took none of the jobs (those beyond a limit may be taken later), or all of them ended.
        """
        jobs = self._ids()
        if len(self._refused) >= self._options.jobs and not jobs:
            raise StageError(
                f"SLURM refuses the jobs: {self._refused[-1]}: correct `cluster` or `cpu_cluster`, then rerun"
            )
        asked = len(jobs) + len(self._refused) >= self._options.jobs
        if jobs and asked and self._due() and len(self._gone(())) == len(jobs):
            files = ", ".join(f"slurm-{job}.out" for job in sorted(jobs.values())[:3])
            raise StageError(f"all {len(jobs)} jobs ended before a worker of theirs came: see {files}, then rerun")

    def revive(self, alive: Iterable[str]) -> int:
        """Submit jobs again that are gone, and return how many were submitted in all.

        Args:
            alive: names of the workers that there are.
        """
        if self._due():  # a SLURM that refuses now may take them later
            gone = self._gone(alive)
            for job in gone.values():
                log.warning("job %s ended before its worker came, see slurm-%s.out; it is submitted again", job, job)
            taken = self._ids()
            for name in [name for name in list(self.cluster.workers) if name in gone or name not in taken]:
                self.cluster.workers.pop(name, None)
        self.cluster.scale(jobs=self._options.jobs)
        self._submitted.update(self._ids().values())
        return len(self._submitted)

    def _ids(self) -> dict[str, str]:
        """Return the numbers of the jobs that SLURM took, by the names of their workers."""
        return {str(name): str(job.job_id) for name, job in list(self.cluster.workers.items()) if job.job_id}

    def _due(self) -> bool:
        due = time.monotonic() - self._asked > ASK_S
        if due:
            self._asked = time.monotonic()
        return due

    def _gone(self, alive: Iterable[str]) -> dict[str, str]:
        """Return jobs that have ended though their workers never came, or have just left, by the names of these."""
        jobs, here = self._ids(), set(alive)
        queued = _queued()
        return {} if queued is None else {n: job for n, job in jobs.items() if job not in queued and n not in here}


def _queued() -> set[str] | None:
    """Return the numbers of this user's jobs that wait or run; None if SLURM does not say."""
    command = ["squeue", "--noheader", "--format=%A", f"--user={os.getuid()}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=ASK_S)
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("SLURM does not say which jobs there are: %s", error)
        return None
    return set(done.stdout.split())


@contextmanager
def slurm_jobs(options: SlurmOptions, threads: int, environment: dict[str, str], folder: Path) -> Iterator[Jobs]:
    """Yield jobs that are submitted; they are cancelled with the body.

    Args:
        options: what to ask SLURM for.
        threads: of each worker.
        environment: variables of each.
        folder: what jobs find on all machines; their credentials lie below it meanwhile.

    Raises:
        ConfigError: if dask-jobqueue is missing, or cannot do what is asked for.
    """
    refused: list[str] = []
    cluster_of_jobs = _class(refused)
    logging.getLogger("tornado.application").setLevel(logging.CRITICAL)  # of a job that is refused: `check` says it
    with TemporaryDirectory(prefix=".dask-", dir=folder.absolute()) as private:
        try:
            cluster = cluster_of_jobs(
                queue=options.queue,
                account=options.account,
                cores=threads,
                processes=1,
                job_cpu=options.cores,
                memory=options.memory,
                walltime=options.walltime,
                job_extra_directives=list(options.directives),
                job_script_prologue=[*(f"export {k}={v}" for k, v in environment.items()), *options.prologue],
                interface=options.interface,
                python=shlex.quote(sys.executable),
                protocol="tls://",
                security=_credentials(Path(private)),
                scheduler_options={"dashboard": options.dashboard, "dashboard_address": ON_LOOPBACK},
                worker_extra_args=["--no-dashboard", "--dashboard-address", ON_LOOPBACK],
                silence_logs=logging.ERROR,
            )
        except (RuntimeError, ValueError) as error:
            raise ConfigError(f"cannot start a cluster of kind slurm: {error}") from error
        with cluster as started:
            yield Jobs(options, started, refused)


def _class(refused: list[str]) -> Any:
    """Return dask-jobqueue's class of clusters, with jobs that note why SLURM refuses them.

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        from dask_jobqueue import SLURMCluster  # type: ignore[attr-defined]
        from dask_jobqueue.slurm import SLURMJob
    except ImportError:
        raise ConfigError("a cluster of kind slurm needs dask-jobqueue: pip install 'kdseg[slurm]'") from None

    class Job(SLURMJob):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **{**named, "security": _quoted(named["security"])})

        async def _submit_job(self, script: str) -> Any:
            try:
                return await super()._submit_job(script)
            except (OSError, RuntimeError) as error:
                refused.append(str(error).partition("stderr:")[2].strip().replace("\n", "; ") or str(error))
                self.status = Status.failed
                raise

    class Cluster(SLURMCluster):
        job_cls = Job

    return Cluster


def _credentials(folder: Path) -> Security:
    """Write fresh credentials into a private folder, where jobs read them: only who has them may connect."""
    made = Security.temporary()
    cert, key = folder / "cert.pem", folder / "key.pem"
    key.touch(0o600)
    cert.write_text(made.tls_ca_file)
    key.write_text(made.tls_worker_key)
    files = {
        f"tls_{role}_{part}": str(path)
        for role in ("client", "scheduler", "worker")
        for part, path in (("cert", cert), ("key", key))
    }
    return Security(require_encryption=True, tls_ca_file=str(cert), **files)


def _quoted(security: Security) -> Security:
    """Return credentials whose paths may stand in a job's command, where dask-jobqueue puts them as they are."""
    quoted = copy.copy(security)
    for field in ("tls_ca_file", "tls_worker_cert", "tls_worker_key"):
        setattr(quoted, field, shlex.quote(getattr(security, field)))
    return quoted
