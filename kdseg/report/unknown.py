"""Notes on what nobody knows: scores without ground truth, and what stands in their place."""

from __future__ import annotations

from kdseg.config.tuning import LEAST_SIDE
from kdseg.report.results import Results


def unknown(results: Results) -> list[str]:
    """Return a sentence per volume without ground truth, and per model that was validated against its teachers."""
    config, found = results.config, []
    for volume in config.evaluate.volumes:
        if not config.volumes[volume].labelled:
            found.append(f"{volume} has no ground truth: it is segmented, and nobody knows how well.")
    for model in config.models:
        voi = results.number(f"{model}/model", "best_agreement_voi")
        if voi is None:
            continue
        train = config.models[model].train
        found.append(
            f"{model} agrees with its teacher {' and '.join(train.teachers)} up to a VOI of {voi:.3f} bits on the "
            f"validation crop of {train.validate_on}. That is an agreement, not an accuracy: faults of the "
            "teacher that it copies agree, too."
        )
    return found + _small_tuning(results)


def _small_tuning(results: Results) -> list[str]:
    """Return a sentence if thresholds were chosen on a volume, or a part of one, that is small."""
    config = results.config
    volume = config.evaluate.tune_on
    chosen = volume and config.segment.threshold is None and config.tuned_options == "none"
    for model in config.evaluate.models if chosen else ():
        found = results.stats(f"{model}/{volume}/sweep")
        if (found.get("narrowest") or LEAST_SIDE) < LEAST_SIDE:
            extent = " × ".join(str(n) for n in found["tuned_on"])
            return [
                f"Thresholds were chosen on {extent} voxels of {volume}, less than {LEAST_SIDE} along an axis: the "
                "best threshold of few neurons is a matter of luck."
            ]
    return []
