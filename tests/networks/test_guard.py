"""The self-test of convolutions: right ones pass, wrong ones are told whatever is wrong with them."""

import multiprocessing
import os
import tempfile
import time

import pytest
import torch
from torch.nn import functional

from kdseg.networks.models.guard import KERNELS, LAYOUTS, REPORTED, deviation, fitting_extent, turn

EXTENT = (20, 12, 10)
CPU = torch.device("cpu")


def deviation_of(convolve=functional.conv3d, dtype=torch.float32, kernel=(3, 3, 3), layout=torch.contiguous_format):
    return deviation(CPU, dtype, EXTENT, kernel, layout, convolve)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("layout", LAYOUTS.values())
def test_right_convolutions_pass(dtype, kernel, layout):
    found = deviation_of(dtype=dtype, kernel=kernel, layout=layout)
    assert not found.wrong
    assert (found.exact > 1e-4) == (dtype == torch.bfloat16)


def test_one_wrong_voxel_of_a_large_input_is_found():
    def large_is_wrong(x, weight):
        out = functional.conv3d(x, weight)
        if x.shape[2] == EXTENT[0]:
            out[0, 3, 5, 0, 0] += 1  # in none of the parts that are compared with float64
        return out

    found = deviation_of(large_is_wrong)
    assert found.exact < 1e-5
    assert found.wrong


def test_what_is_always_wrong_is_found():
    found = deviation_of(lambda x, weight: functional.conv3d(x, weight.flip(2)))
    assert found.pieces < 1e-5
    assert found.wrong


def test_nan_is_wrong():
    assert deviation_of(lambda x, weight: functional.conv3d(x, weight) * float("nan")).wrong


def test_a_small_card_tests_what_it_can_hold():
    plane = 16 * REPORTED[1] * REPORTED[2] * 2
    assert fitting_extent(80 * 2**30, torch.bfloat16) == REPORTED
    assert fitting_extent(6 * 50 * plane, torch.bfloat16) == (50, *REPORTED[1:])
    assert fitting_extent(0, torch.bfloat16)[0] == 16


def held(name, order):
    with turn(name):
        order.append("in")
        time.sleep(0.3)
        order.append("out")


@pytest.mark.slow
def test_processes_take_turns():
    with multiprocessing.Manager() as manager:
        order = manager.list()
        processes = [multiprocessing.get_context("spawn").Process(target=held, args=("test", order)) for _ in range(3)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert list(order) == ["in", "out"] * 3


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    lock = tmp_path / f"kdseg-{os.getuid()}-test.lock"
    lock.symlink_to(tmp_path / "of somebody")
    with pytest.raises(OSError, match=lock.name), turn("test"):
        pass
    assert not (tmp_path / "of somebody").exists()
    lock.unlink()
    with turn("test"):
        assert lock.stat().st_mode & 0o777 == 0o600
