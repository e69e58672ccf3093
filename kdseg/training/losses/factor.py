"""Factor transfer."""

from __future__ import annotations

from torch import Tensor

from kdseg.config.terms import FactorOptions
from kdseg.networks.models import Batch, Outputs
from kdseg.training.losses.base import Context, Term
from kdseg.training.losses.paraphraser import AutoEncoder, encoder
from kdseg.training.losses.taps import aligned, tapped, width


class FactorTransferTerm(Term):
    """Distance of the student's factors from the teacher's (Kim et al. 2018).

    The teacher's factors are what an auto-encoder, the paraphraser, makes of its features; the student's are
    what convolutions trained with it, the translator, make of its own. Those of a crop are divided by their root
    mean square, where Kim et al. take the norm: the same but for a constant, which makes the value independent
    of the size of a crop. With power 2 it is in [0, 4].
    """

    def __init__(self, options: FactorOptions, context: Context) -> None:
        super().__init__()
        self.level, self.power = options.level, options.power
        self.paraphraser = AutoEncoder(width(context, "teacher", self.level, "ft"), options.width, options.fit)
        self.translator = encoder(width(context, "student", self.level, "ft"), options.width)

    def value(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the term, 0 as long as the paraphraser is trained; see `Term`."""
        features = tapped(teacher, self.level).detach()
        ours: Tensor = self.translator(tapped(student, self.level))
        if self.paraphraser.fitting:
            if self.training:
                self.paraphraser.fit(features)
            return 0 * ours.sum()
        theirs = aligned(self.paraphraser.encode(features), ours)
        return (unit(ours) - unit(theirs)).abs().pow(self.power).mean()


def unit(factors: Tensor) -> Tensor:
    """Return factors divided by the root mean square of their crop, those next to 0 by less.

    Args:
        factors: float32 (n, c, z, y, x).
    """
    return factors * (factors.square().mean((1, 2, 3, 4), keepdim=True) + 1e-8).rsqrt()
