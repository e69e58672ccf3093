"""A first configuration of somebody's own data, made from what the files say."""

from __future__ import annotations

import shlex

import yaml

from kdseg.config import Config, validate
from kdseg.config.questions import InitTask
from kdseg.errors import ClaimError, masked
from kdseg.planning.proposal.data import look
from kdseg.planning.proposal.pace import ADAPTED, NEW, Pace, timed, untimed
from kdseg.planning.proposal.proposal import Proposal, propose_shipped, propose_training
from kdseg.planning.proposal.text import NETWORK, text
from kdseg.results.files import write_text


def run(task: InitTask) -> None:
    """Write the configuration, and print what it does.

    Raises:
        ClaimError: if there is a file already where it is to be written.
    """
    _expect_nothing(task)
    data = look(task)
    for warning in data.warnings:
        print(f"warning: {masked(warning)}")
    proposal = propose_shipped(data) if task.labels is None else propose_training(data, gpu=_on_gpu())
    pace = None if proposal.trained is None else _pace(task, proposal)
    made = text(proposal, pace, task.out)
    config = _read(made)
    _expect_nothing(task)  # after minutes
    write_text(task.out, made)
    for line in _told(task, proposal, config, pace):
        print(masked(line))


def _expect_nothing(task: InitTask) -> None:
    if task.out.exists() or task.out.is_symlink():
        raise ClaimError(f"{task.out} is there already, and stays as it is: name another file, --out FILE")


def _pace(task: InitTask, proposal: Proposal) -> Pace:
    budget = NEW if proposal.shipped is None else ADAPTED
    if task.no_timing:
        return untimed(budget)
    print("timing some steps of the training, a minute or two (--no-timing leaves that out) …", flush=True)
    return timed(_read(text(proposal, untimed(budget), task.out)), NETWORK, budget)


def _read(made: str) -> Config:
    return validate(yaml.safe_load(made))


def _told(task: InitTask, proposal: Proposal, config: Config, pace: Pace | None) -> list[str]:
    """Return what is worth a line on the terminal."""
    data, trained = proposal.data, proposal.trained
    size = " x ".join(f"{one:g}" for one in data.voxel_size)
    shape = " x ".join(map(str, data.raw.data.shape))
    lines = [f"{task.raw}: {shape} voxels of {size} nm, {data.raw.data.dtype}"]
    if trained is None or pace is None:
        lines.append(f"segmented with {proposal.shipped}, which comes with kdseg and was not trained on these data")
    else:
        start = "" if proposal.shipped is None else f", from {proposal.shipped}"
        parts = {"train": trained.parts.train, "tune": trained.parts.tune, "test": trained.parts.test}
        lines.append("cut into " + ", ".join(f"{name} {roi}" for name, roi in parts.items()))
        if proposal.thin:
            lines.append("warning: tune is thin: the threshold that is best there is partly luck, more labels help")
        lines.append(f"training{start}: {pace.steps} steps, {pace.said}")
    file = shlex.quote(str(task.out))
    lines.append(f"wrote {file}, which says more; results will be in {config.results}. Next:")
    return [*lines, f"  kdseg check {file}", f"  kdseg run {file}"]


def _on_gpu() -> bool:
    from kdseg.networks.models import resolve_device

    return resolve_device("auto").type == "cuda"
