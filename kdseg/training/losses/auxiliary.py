"""Auxiliary networks that a loss term trains with an optimiser of its own, in sync across processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn


def all_reduce_sum(values: Tensor) -> Tensor:
    """Return the sum over the processes that train together; the values themselves where there is only one."""
    if not (dist.is_available() and dist.is_initialized()):
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total


def all_reduce_mean(values: Tensor) -> Tensor:
    """Return the mean over the processes that train together."""
    if not (dist.is_available() and dist.is_initialized()):
        return values
    return all_reduce_sum(values) / dist.get_world_size()


class Auxiliary(nn.Module):
    """A network with an Adam of its own, whose state it keeps.

    Its parameters take a gradient only within `descend`, so that no other optimiser trains them, and only there
    it is in training mode: applying it changes nothing.
    """

    def __init__(self, network: nn.Module, learning_rate: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        """Take over a network.

        Args:
            network: from now on without gradient.
            learning_rate: of Adam.
            betas: of Adam.
        """
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.optimiser = torch.optim.Adam(network.parameters(), lr=learning_rate, betas=betas)
        self.steps = 0

    def forward(self, *args: Tensor) -> Any:
        """Apply the network."""
        return self.network(*args)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; that of the network stays."""
        super().train(mode)
        self.network.eval()
        return self

    def descend(self, loss: Callable[[], Tensor]) -> None:
        """Do one step of Adam, with the gradient of all processes.

        Args:
            loss: computes a scalar by calling this module.
        """
        parameters = list(self.network.parameters())
        self.network.train().requires_grad_(True)
        try:
            with torch.enable_grad():
                gradients = torch.autograd.grad(loss(), parameters, materialize_grads=True)
        finally:
            self.network.eval().requires_grad_(False)
        flat = all_reduce_mean(torch.cat([gradient.flatten() for gradient in gradients]))
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, gradient in zip(parameters, torch.split(flat, sizes), strict=True):
            parameter.grad = gradient.view_as(parameter)
        self.optimiser.step()
        # the student's gradients are clipped by their norm, over all that has one
        self.optimiser.zero_grad()
        self.steps += 1

    def get_extra_state(self) -> dict[str, Any]:
        """Return the optimiser's state and the number of steps."""
        return {"optimiser": self.optimiser.state_dict(), "steps": self.steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take up what `get_extra_state` returned."""
        self.optimiser.load_state_dict(state["optimiser"])
        self.steps = state["steps"]
