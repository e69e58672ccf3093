"""MONAI's DynUNet (the nnU-Net family of Isensee et al. 2021) behind our interface."""

from __future__ import annotations

from torch import Tensor, nn

from kdseg.config.networks import DynUNetOptions, HeadOptions
from kdseg.errors import ConfigError
from kdseg.geometry import Offsets, Triple
from kdseg.networks.models.base import Heads, Network, Outputs, initialise
from kdseg.networks.models.receptive import Level, Window, halo_and_stride, same


class DynUNet(Network):
    """Residual blocks, strided convolutions down, BatchNorm and leaky ReLU.

    MONAI builds the blocks; the forward pass is ours, since MONAI's own does not return the decoder's features.
    """

    def __init__(self, options: DynUNetOptions, heads: HeadOptions, offsets: Offsets) -> None:
        super().__init__()
        try:
            from monai.networks.nets.dynunet import DynUNet as MonaiDynUNet
        except ImportError:
            raise ConfigError(
                "the network kind 'dynunet' needs MONAI, which is not installed: pip install monai, or use 'unet'"
            ) from None
        if len(options.widths) < 3:
            raise ConfigError(f"a dynunet needs at least 3 levels, got widths {options.widths}")
        self.halo, self.stride = halo_and_stride(_levels(options))
        made = MonaiDynUNet(
            spatial_dims=3,
            in_channels=1,
            out_channels=1,
            kernel_size=options.level_kernels,
            strides=((1, 1, 1), *options.steps),
            upsample_kernel_size=options.steps,
            filters=options.widths,
            norm_name=("batch", {"affine": True}),
            res_block=True,
        )
        self.encoders = nn.ModuleList([made.input_block, *made.downsamples, made.bottleneck])
        self.decoders = made.upsamples
        self.heads = Heads(options.widths[0], heads, offsets)
        initialise(self)

    def forward(self, raw: Tensor) -> Outputs:
        """Return the logits and features of ``raw``; see `Network`."""
        self._check(raw)
        x, skips = raw, []
        for encoder in self.encoders:
            x = encoder(x)
            skips.append(x)
        features = [skips.pop()]
        for decoder, skip in zip(self.decoders, reversed(skips), strict=True):
            x = decoder(x, skip)
            features.append(x)
        return Outputs(self.heads(x), tuple(reversed(features)), tuple(skips))


def _levels(options: DynUNetOptions) -> list[Level]:
    kernels = options.level_kernels
    steps: tuple[Triple, ...] = ((1, 1, 1), *options.steps)
    levels = []
    for level, (kernel, step) in enumerate(zip(kernels, steps, strict=True)):
        z, y, x = ((k - s + 1) // 2 for k, s in zip(kernel, step, strict=True))
        encoder = [Window(kernel, step, (z, y, x)), same(kernel)]
        if level == len(kernels) - 1:
            levels.append(Level(encoder))
        else:
            # MONAI gives the decoder of a level the kernel of the level below it
            levels.append(Level(encoder, [same(kernels[level + 1])] * 2, steps[level + 1]))
    return levels
