"""A device that is not the CPU, without having one: tensors with values that say they are elsewhere.

An operation that mixes them with tensors of the CPU is refused, as CUDA refuses it. What they hold is computed on the
CPU: results that decide what happens next are there, which torch's fake tensors lack.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

ELSEWHERE = torch.device("lazy", 0)
"""Of the devices that nobody has, one whose gradients autograd computes in the thread that asks for them."""
_ANYWHERE = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)


class There(Tensor):
    """A tensor elsewhere.

    Attributes:
        here: its values.
    """

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> There:
        """Wrap a tensor of the CPU."""
        made: There = Tensor._make_wrapper_subclass(
            cls, here.size(), here.stride(), here.storage_offset(), dtype=here.dtype, device=ELSEWHERE
        )
        made.here = here
        return made

    # torch makes lists of tensors, and tensors of lists, without asking
    def tolist(self) -> Any:
        """Return the values as numbers."""
        return self.here.tolist()

    def new_tensor(self, data: Any) -> There:  # type: ignore[override]
        """Return values of the same kind."""
        return There(self.here.new_tensor(data))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute on the CPU."""
        return dispatched(func, args, kwargs or {})


class _Generator(torch.Generator):
    """One of the CPU, whatever device it is asked for."""

    def __new__(cls, *_: Any) -> _Generator:
        return super().__new__(cls)


def make_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let those parts of torch that ask for the kind of a device know `ELSEWHERE`; they treat it as the CPU."""
    autocast, as_tensor = torch.autocast, torch.as_tensor
    monkeypatch.setattr(
        torch, "autocast", lambda kind, **how: autocast("cpu" if kind == ELSEWHERE.type else kind, **how)
    )
    monkeypatch.setattr(torch, "as_tensor", lambda data, dtype, device: as_tensor(data, dtype=dtype).to(device))
    monkeypatch.setattr(torch, "Generator", _Generator)
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)  # it does not wrap tensors


class Elsewhere(TorchDispatchMode):
    """Within it tensors can be made `ELSEWHERE` and moved there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute on the CPU."""
        return dispatched(func, args, kwargs or {})


def dispatched(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Do an operation on values, and say where its results are."""
    found = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    there = any(isinstance(value, There) for value in found)
    strangers = [value for value in found if not isinstance(value, There) and value.ndim]
    if there and strangers and func not in _ANYWHERE:
        shapes = [tuple(value.shape) for value in strangers]
        raise RuntimeError(f"{func} of tensors on two devices, on the CPU those of {shapes}")
    kwargs = dict(kwargs)
    if kwargs.get("device") is not None:
        there = kwargs["device"].type == ELSEWHERE.type
        kwargs["device"] = torch.device("cpu")
    elif func is torch.ops.aten.copy_.default:
        there = isinstance(args[0], There)

    def values(value: Any) -> Any:
        return value.here if isinstance(value, There) else value

    def placed(value: Any) -> Any:
        if not isinstance(value, Tensor) or not there:
            return value
        same = [one for one in found if isinstance(one, There) and one.here is value]  # changed in place
        return same[0] if same else There(value)

    return tree_map(placed, func(*tree_map(values, args), **tree_map(values, kwargs)))
