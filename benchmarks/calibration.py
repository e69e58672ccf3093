"""Calibration of affinities: the share of pairs of one neuron where a network says 70 %, and what a temperature mends.

    python benchmarks/calibration.py MODEL [MODEL ...]

A model is a model file, or the name of a shipped network. Temperature and bias are fitted to the logits of the
affinities of z 120:140 of `fib25_dev.h5` (least negative log likelihood, all pairs alike), and measured on z 140:160,
which no training and no fit has seen. Ground truth has a membrane of a voxel, as in training. The expected calibration
error is the mean of |predicted - true share| over the 256 values of the affinities, by how often they occur.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from fib25 import TUNE, crop_of, predicted
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit

from kdseg.config.shipped import model_file
from kdseg.geometry import Roi
from kdseg.networks.checkpoint import load_model
from kdseg.training.targets import affinities
from kdseg.training.validation import Validation

VALUES = np.clip(np.arange(256) / 255, 0.25 / 255, 1 - 0.25 / 255)
Counts = NDArray[np.float64]
"""(2, 256): pairs that are cut, and pairs of one neuron, by predicted value."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    given = parser.parse_args()
    torch.set_num_threads(1)
    columns = ("network", "temperature", "bias", "error as it is", "with temperature", "with both", "likelihood [nat]")
    print(f"| {' | '.join(columns)} |")
    print("|" + " --- |" * 7)
    curves = {}
    with TemporaryDirectory() as folder:
        crop = crop_of("tune", TUNE, Path(folder))
        for name in given.models:
            fitted, measured = counts(name, crop)
            heat, both = fit(fitted, bias=False), fit(fitted, bias=True)
            errors = [error(measured, *how) for how in ((1.0, 0.0), heat, both)]
            cells = [Path(name).stem, f"{both[0]:.2f}", f"{both[1]:+.2f}", *(f"{one:.4f}" for one in errors)]
            cells.append(f"{loss(measured, 1.0, 0.0):.4f}, {loss(measured, *both):.4f}")
            print(f"| {' | '.join(cells)} |", flush=True)
            curves[Path(name).stem] = (measured, both)
    print()
    print("| predicted |", " | ".join(f"{name}: true share, with both" for name in curves), "|")
    print("| --- |" + " --- |" * len(curves))
    for low in range(0, 100, 10):
        cells = [f"{share(one, (1.0, 0.0), low)}, {share(one, both, low)}" for one, both in curves.values()]
        print(f"| {low} to {low + 10} % | {' | '.join(cells)} |")


def counts(name: str, crop: Validation) -> tuple[Counts, Counts]:
    """Return the pairs of the first and of the second half, by what is predicted and what is true."""
    loaded = load_model(model_file(name))
    affinity, found = predicted([loaded], crop), np.zeros((2, 2, 256))
    for half in range(2):
        part = Roi((20 * half, 0, 0), (20, *affinity.shape[2:])).slices()
        truth = crop.truth
        edge = None if truth.boundary is None else truth.boundary[part]
        for channel, offset in zip(affinity, loaded.offsets, strict=True):
            target, known = affinities(truth.labels[part], (offset,), mask=truth.known[part], boundary=edge)
            values = torch.from_numpy(channel[part])
            for same in range(2):
                pairs = (target == bool(same)) & known
                found[half, same] += torch.bincount(values[pairs[0]], minlength=256).numpy()
    return found[0], found[1]


def scaled(temperature: float, bias: float) -> NDArray[np.float64]:
    return expit(logit(VALUES) / temperature + bias)


def loss(pairs: Counts, temperature: float, bias: float) -> float:
    """Return the mean negative log likelihood, nat."""
    p = np.clip(scaled(temperature, bias), 1e-12, 1 - 1e-12)
    return float(-(pairs[1] @ np.log(p) + pairs[0] @ np.log1p(-p)) / pairs.sum())


def fit(pairs: Counts, *, bias: bool) -> tuple[float, float]:
    """Return the temperature and the bias of greatest likelihood."""
    found = minimize(
        lambda v: loss(pairs, float(np.exp(v[0])), float(v[1]) if bias else 0.0), [0.0, 0.0], method="Nelder-Mead"
    )
    return float(np.exp(found.x[0])), float(found.x[1]) if bias else 0.0


def error(pairs: Counts, temperature: float, bias: float) -> float:
    """Return the expected calibration error."""
    total = pairs.sum(0)
    true = np.divide(pairs[1], total, out=np.zeros(256), where=total > 0)
    return float((total * np.abs(true - scaled(temperature, bias))).sum() / total.sum())


def share(pairs: Counts, how: tuple[float, float], low: int) -> str:
    """Return how many of the pairs that are predicted within ten percent from ``low`` are of one neuron."""
    p = scaled(*how)
    within = (p >= low / 100) & (p < (low + 10) / 100 if low < 90 else p <= 1)
    total = pairs[:, within].sum()
    return f"{100 * pairs[1, within].sum() / total:.0f} %" if total else "none"


if __name__ == "__main__":
    main()
