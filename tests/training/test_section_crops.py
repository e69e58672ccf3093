"""Training on stacks of unrelated images: crops of one section, in which every term works, and validation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from term_cases import CASES, LOGITS, Case
from toy_volumes import cells, write_volume

from kdseg.config.networks import AugmentOptions, HeadOptions, TrainOptions, UNetOptions
from kdseg.config.segmentation import WatershedOptions
from kdseg.geometry import Roi
from kdseg.networks.models import Batch, Outputs, Widths, build
from kdseg.networks.models.device import resolve_device
from kdseg.prediction.tiles import predict_roi, predictor
from kdseg.training.losses import Context, make_term
from kdseg.training.sampling import Crops, Source
from kdseg.training.validation import least, sweep, validation_crop

FLAT = ((0, -1, 0), (0, 0, -1), (0, -3, 0), (0, 0, -3))
OURS, THEIRS = Widths(LOGITS, (4, 6, 8), (4, 6)), Widths(LOGITS, (7, 6, 9), (7, 6))
CPU = resolve_device("cpu")
FITTED = {"cad": {"graft": 0.0}, "spkd": {"parts": (1, 2, 2)}, "skd": {"pool": (1, 2, 2)}}
"""Options that cannot look beyond a section; the terms refuse others."""
NETWORK = UNetOptions(widths=(3, 6), kernels=((1, 3, 3),) * 2, downsample=((1, 2, 2),))


def given(seed: int, widths: Widths) -> Outputs:
    """Return random outputs over two crops of one section."""
    generator = torch.Generator().manual_seed(seed)

    def tensor(channels: int, level: int) -> torch.Tensor:
        return torch.randn(2, channels, 1, 16 >> level, 12 >> level, generator=generator).requires_grad_()

    return Outputs(
        {name: tensor(c, 0) for name, c in widths.logits.items()},
        tuple(tensor(c, level) for level, c in enumerate(widths.features)),
        tuple(tensor(c, level) for level, c in enumerate(widths.skips)),
    )


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.options.name}-{CASES.index(c)}")
def test_every_term_learns_from_crops_of_one_section(case: Case) -> None:
    options = case.options.model_copy(update=FITTED.get(case.options.name, {}))
    torch.manual_seed(0)
    term = make_term(options, Context(FLAT, (10.0, 10.0, 10.0), OURS, THEIRS))
    labels = torch.arange(1, 13).reshape(2, 1, 2, 3).repeat_interleave(8, 2).repeat_interleave(4, 3)
    described = torch.rand(2, 10, 1, 16, 12, generator=torch.Generator().manual_seed(3))
    batch = Batch(torch.zeros(2, 1, 1, 16, 12), labels, labels > 0, labels, descriptors=described)
    for call in range(case.calls + 1):
        student = given(call, OURS)
        value = term(student, given(50 + call, THEIRS), batch)
    value.backward()
    assert torch.isfinite(value)
    assert value != 0
    found = [tensor.grad for tensor in (*student.logits.values(), *student.features) if tensor.grad is not None]
    assert found
    assert all(torch.isfinite(grad).all() for grad in found)


def stack(tmp_path: Path, depth: int) -> tuple[Path, Path, np.ndarray, np.ndarray]:
    """Return a stack of unrelated images whose cells are numbered from 1 in each, on the disk and in memory."""
    made = [cells((1, 32, 32), 6, seed=z) for z in range(depth)]
    raw, labels = (np.concatenate(arrays) for arrays in zip(*made, strict=True))
    paths = write_volume(tmp_path / "raw.zarr", raw), write_volume(tmp_path / "labels.zarr", labels)
    return *paths, raw, labels


def test_a_crop_shows_one_section_whatever_is_done_to_it(tmp_path: Path) -> None:
    depth = 4
    raw = np.repeat(np.arange(1, depth + 1, dtype=np.uint8) * 50, 32 * 32).reshape(depth, 32, 32)
    paths = (
        write_volume(tmp_path / "raw.zarr", raw),
        write_volume(tmp_path / "labels.zarr", np.ones(raw.shape, np.uint64)),
    )
    augment = AugmentOptions(elastic=1, intensity=0, noise=0, blur=1, missing_section=0, misaligned_section=0)
    options = TrainOptions(volumes=("a",), validate_on="a", crop=(1, 16, 16), steps=1, augment=augment)
    crops = Crops(options, {"a": paths}, offsets=FLAT, lsd_sigma=30.0)  # cubic voxels: deformed along z elsewhere
    seen = set()
    for number in range(24):
        batch = crops[number]
        assert batch.raw.shape == (1, 1, 1, 16, 16)
        (one,) = {int(value) for value in ((batch.raw + 1) * 127.5).round().unique()}
        assert batch.mask.float().mean() > 0.5
        assert batch.descriptors is not None
        assert (batch.descriptors[:, 3] == 0).all()  # no variance along z, though all sections have the same label
        seen.add(one)
    assert seen == {50, 100, 150, 200}


def test_a_section_is_predicted_as_if_it_were_alone(tmp_path: Path) -> None:
    _, _, raw, _ = stack(tmp_path, 4)
    torch.manual_seed(0)
    network = build(NETWORK, HeadOptions(), FLAT)
    network(torch.randn(2, 1, 1, 16, 16))
    predict = predictor(network, (1, 16, 16), CPU, torch.float32, offsets=FLAT)
    assert predict.halo[0] == 0
    volume = Roi((0, 0, 0), raw.shape)

    def read(roi: Roi) -> np.ndarray:
        return raw[roi.slices()]

    whole = predict_roi(predict, read, volume, volume)
    assert len({whole[:, z].tobytes() for z in range(4)}) == 4
    for z in range(4):
        alone = Roi((0, 0, 0), (1, 32, 32))
        found = predict_roi(predict, lambda roi, z=z: raw[z : z + 1][roi.slices()], alone, alone)
        assert (found[:, 0] == whole[:, z]).all()


@pytest.mark.parametrize("size", [(10.0, 10.0, 10.0), (40.0, 10.0, 10.0)])
def test_validation_joins_nothing_across_sections(tmp_path: Path, size: tuple[float, float, float]) -> None:
    _, _, raw, labels = stack(tmp_path, 3)
    depth, count = 3, 0
    torch.manual_seed(0)
    network = build(NETWORK, HeadOptions(), FLAT).eval()
    losses, tables = [], []
    (tmp_path / "all").mkdir()
    for name, part in [("all", slice(None)), *((str(z), slice(z, z + 1)) for z in range(depth))]:
        where = tmp_path / name
        paths = [write_volume(where / f"{k}.zarr", a[part], size) for k, a in (("raw", raw), ("labels", labels))]
        crop = validation_crop(Source("a", *paths), (9, 32, 32), sections=True)
        found = sweep(network, crop, FLAT, torch.float32, CPU, WatershedOptions(seed_distance=2))
        tables.append(found)
        losses.append(crop.truth.boundary)
    assert torch.equal(losses[0], torch.cat(losses[1:]))  # type: ignore[arg-type]
    weights = [(labels[z] > 0).sum() for z in range(depth)]
    for row, *rows in zip(*tables, strict=True):
        assert row.voi == pytest.approx(np.average([one.voi for one in rows], weights=weights), abs=1e-9)
        count += 1
    assert count > 10
    assert least(tables[0]).voi == min(row.voi for row in tables[0])
