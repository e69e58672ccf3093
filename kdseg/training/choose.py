"""Trials of one method → the learning rate at which all its seeds are trained."""

from __future__ import annotations

from statistics import fmean

from kdseg.config.tasks import ChooseTask
from kdseg.results.claims import claim
from kdseg.results.manifests import read


def run(task: ChooseTask) -> None:
    """Choose the rate of least mean affinity loss on the tuning volume, the first of equals.

    In the manifest are ``stats.learning_rate`` and ``stats.tried``: the mean loss and that of each trial, by rate.
    """
    found = {rate: [read(path) for path in paths] for rate, paths in task.trials.items()}
    inputs = {f"{rate}/{k}": trial.fingerprint for rate, trials in found.items() for k, trial in enumerate(trials)}
    made_of = {"learning_rates": list(found)}
    # made of other trials, it is chosen anew in an instant: there is nothing to refuse for
    with claim(task.manifest, "choose", made_of, inputs, overwrite=True) as held:
        losses = {rate: [trial.stats["tuned"]["affinity_loss"] for trial in trials] for rate, trials in found.items()}
        means = {rate: fmean(values) for rate, values in losses.items()}
        held.stats.update(
            learning_rate=min(means, key=means.__getitem__),
            tried=[{"learning_rate": rate, "mean": means[rate], "losses": losses[rate]} for rate in means],
        )
