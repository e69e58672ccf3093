"""Options of the optimiser and of how its rate falls."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kdseg.config.base import Positive, Section


class OptimiserOptions(Section):
    """The optimiser of a training. The default is for networks of any kind; the rest is what published recipes need."""

    kind: Literal["adamw", "adam"] = "adamw"
    """`adam` adds the weight decay to the gradient (Kingma & Ba 2015), `adamw` takes it off the weights (Loshchilov &
    Hutter 2019). Biases and norms do not decay in either."""
    epsilon: Positive = 1e-8
    """Added to the root of the second moment."""
    amsgrad: bool = False
    """Divide by the largest second moment so far (Reddi et al. 2018)."""
    decay: Literal["cosine", "polynomial", "none"] = "cosine"
    """Fall of the learning rate after the warm-up: half a cosine, or (1 - t)^0.9, to 0 at the last step; or none."""
    drops: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    """Shares of that time after which the rate is a tenth of what it was, besides."""
