"""A network for inference: every BatchNorm merged into the convolution before it, and no heads that nobody reads."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from copy import deepcopy
from itertools import pairwise

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from kdseg.errors import ConfigError
from kdseg.networks.models.base import Heads, N


def fold(network: N) -> N:
    """Return a copy for inference in which the convolutions have absorbed their BatchNorms.

    ``gamma * (W x - mean) / sqrt(var + eps) + beta`` is a convolution again, with scaled weights and a bias.
    The copy is in evaluation mode and its parameters take no gradient.

    Raises:
        ConfigError: if a normalisation is left that cannot be merged, e.g. one whose statistics depend on the
            tile: outputs would then depend on how a volume is cut into tiles.
    """
    folded = deepcopy(network).eval()
    for parent, name, convolution, norm in list(_pairs(folded)):
        if norm.running_mean is None or norm.running_var is None:
            raise ConfigError("BatchNorm without running statistics cannot be folded: it depends on the tile")
        weight, bias = fuse_conv_bn_weights(
            convolution.weight,
            convolution.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        convolution.weight, convolution.bias = nn.Parameter(weight), nn.Parameter(bias)
        setattr(parent, name, nn.Identity())
    for module in folded.modules():
        if isinstance(module, _BatchNorm | nn.GroupNorm | nn.LayerNorm):  # _BatchNorm: InstanceNorm is not one
            raise ConfigError(f"{type(module).__name__} cannot be folded into a convolution: use BatchNorm")
        if isinstance(module, nn.InstanceNorm3d):
            raise ConfigError("InstanceNorm depends on the tile and cannot be folded: use BatchNorm")
    return folded.requires_grad_(False)


def only_heads(network: N, names: Collection[str]) -> N:
    """Return a copy that predicts nothing but what is named; what it predicts is the same to the bit.

    Args:
        network: any network; in the mode that it is in.
        names: of heads, the keys of `Outputs.logits`.

    Raises:
        ConfigError: if the network has no such head.
    """
    copy = deepcopy(network)
    for module in list(copy.modules()):
        if isinstance(module, Heads):
            if unknown := sorted(set(names) - set(module.convolutions)):
                raise ConfigError(f"the network has no heads {unknown}, it predicts {list(module.convolutions)}")
            module.convolutions = nn.ModuleDict({n: head for n, head in module.convolutions.items() if n in names})
    return copy


def _pairs(network: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Conv3d, _BatchNorm]]:
    """Yield (parent, name of the norm, convolution, norm), for our blocks and for MONAI's."""
    for module in network.modules():
        children = list(module.named_children())
        if isinstance(module, nn.Sequential):
            for (_, first), (name, second) in pairwise(children):
                if isinstance(first, nn.Conv3d) and isinstance(second, _BatchNorm):
                    yield module, name, first, second
        else:
            named = dict(children)
            for name, child in children:
                before = named.get(name.replace("norm", "conv"))
                if isinstance(child, _BatchNorm) and isinstance(before, nn.Sequential):
                    convolution = before[0]
                    if isinstance(convolution, nn.Conv3d):
                        yield module, name, convolution, child
