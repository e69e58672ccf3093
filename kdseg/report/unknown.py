"""Notes on what nobody knows: scores without ground truth, and what stands in their place."""

from __future__ import annotations

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
    return found
