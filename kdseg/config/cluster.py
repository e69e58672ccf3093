"""Clusters on which blocks are done."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kdseg.config.base import LINE, WORD, Count, Positive, Section


class LocalOptions(Section):
    """Processes of this machine: one per GPU (`gpus`), or on CPUs one per worker (`workers`), one thread each."""

    kind: Literal["local"] = "local"
    dashboard: bool = False
    """Dask's pages about the workers of predictions, on loopback only, at an address in the log."""


class SlurmOptions(Section):
    """Jobs that the stage submits to SLURM, one process each; needs `dask-jobqueue`, the extra `slurm`."""

    kind: Literal["slurm"]
    jobs: Count = 1
    """Jobs to submit; with `device: cuda` each predicts on the first GPU that it sees."""
    queue: Annotated[str | None, Field(pattern=WORD)] = None
    """Partition."""
    account: Annotated[str | None, Field(pattern=WORD)] = None
    cores: Count = 2
    """CPUs per job: in predictions one computes, what is left reads and writes; other stages need one."""
    memory: Annotated[str, Field(pattern=r"^\d+(\.\d+)? ?[kMGT]i?B$")] = "16GB"
    """Per job."""
    walltime: Annotated[str, Field(pattern=r"^(\d+-)?\d+:\d\d:\d\d$")] = "04:00:00"
    """Of a job. One that ends before the volume is done is submitted again; ten more than `jobs` in a row without a
    block that was finished end the run."""
    directives: tuple[Annotated[str, Field(pattern=LINE)], ...] = ()
    """More options of sbatch, e.g. `--gres=gpu:1`."""
    prologue: tuple[str, ...] = ()
    """Lines of shell before the worker starts, e.g. `module load cuda`."""
    interface: Annotated[str | None, Field(pattern=WORD)] = None
    """Network interface that jobs reach this machine by, e.g. `ib0`; default: SLURM's own."""
    wait_minutes: Positive = 24 * 60
    """Time to wait for the first job to start."""
    dashboard: bool = False
    """Dask's pages about its workers: on this machine's loopback only, at an address in the log."""


class PartitionsOptions(Section):
    """SLURM's partitions for the jobs of the workflow; `sinfo` lists them, and what they allow is asked for at most."""

    cpu: Annotated[str | None, Field(pattern=WORD)] = None
    """Default: the profile's, or SLURM's own."""
    gpu: Annotated[str | None, Field(pattern=WORD)] = None
    """Of jobs that need a GPU; default: as `cpu`."""


class TlsOptions(Section):
    """Files in PEM format with which a client and a scheduler prove to each other who they are."""

    ca_file: str
    """Certificate of the authority that signed those of the scheduler and of the client."""
    cert: str
    """Certificate of the client."""
    key: str | None = None
    """Private key of the client; default: it is in `cert`, too."""


class SchedulerOptions(Section):
    """A Dask cluster that runs already, with kdseg installed on its workers and the same file system."""

    kind: Literal["scheduler"]
    address: Annotated[str, Field(pattern=r"^[a-z]+://\S+$")]
    """Of its scheduler, e.g. `tls://login1:8786`. Who can reach one at `tcp://` can run programs as its owner."""
    tls: TlsOptions | None = None
    """Credentials for a scheduler at `tls://`."""
    wait_minutes: Positive = 5
    """Time to wait for its first worker."""

    @model_validator(mode="after")
    def _credentials_for_tls(self) -> Self:
        if self.address.startswith("tls://") and self.tls is None:
            raise ValueError(f"{self.address} needs credentials: add `tls: {{ca_file: …, cert: …, key: …}}`")
        if self.tls is not None and not self.address.startswith("tls://"):
            raise ValueError(f"`tls` is for an address that begins with tls://, got {self.address}")
        return self


ClusterOptions = Annotated[LocalOptions | SlurmOptions | SchedulerOptions, Field(discriminator="kind")]
