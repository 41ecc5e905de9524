"""Softmax over classes with a margin: the one family of losses that has weights of its own."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

# Below this, 1 - cosine^2 is rounding: the slope of its root would be noise without bound. It means angles below 0.001.
_SMALLEST_SQUARED_SINE = 1e-6


class MarginSoftmax(nn.Module):
    """Classify rows by their angle to one learnt direction per class; the right class has to win by a margin.

        arcface    scale * cos(angle + margin)       Deng et al. 2019, additive angular margin
        cosface    scale * (cos(angle) - margin)     Wang et al. 2018, large margin cosine

    is the logit of the row's own class, scale * cos(angle) that of every other one; then cross entropy. Where angle + margin
    would exceed pi, cos(angle + margin) rises again; as in the authors' code (insightface), cos(angle) - margin * sin(margin)
    takes over there, so that the logit always falls with the angle.

    The class directions are trained beside the head and thrown away with this module afterwards. Their start is drawn from
    `seed` alone.
    """

    def __init__(
        self, dim: int, *, classes: int, kind: Literal["arcface", "cosface"], margin: float, scale: float, seed: int = 0
    ) -> None:
        """Make random class directions.

        classes: the number of labels, at least 1.
        margin: for arcface an angle in [0, pi / 2], usually 0.5; for cosface a cosine in [0, 2], usually 0.35. 0 is a plain
            softmax over cosines.
        scale: > 0, usually 16 to 64; the more classes, the larger.
        """
        super().__init__()
        largest = {"arcface": math.pi / 2, "cosface": 2.0}
        if kind not in largest:
            raise ValueError(f"kind must be one of {', '.join(largest)}, found {kind!r}")
        if not 0 <= margin <= largest[kind]:
            raise ValueError(f"margin of {kind} must be from 0 to {largest[kind]:.4g}, found {margin}")
        if classes < 1 or not scale > 0:
            raise ValueError(f"classes must be at least 1 and scale above 0, found {classes} and {scale}")
        self.kind = kind
        self.margin = margin
        self.scale = scale
        start = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(classes, dim, generator=start))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The mean cross entropy of the batch, a scalar.

        embeddings: (n, dim), unit rows, of the dtype of the weights. labels: (n,) int64 in [0, classes).
        Every row counts by itself. With a single class, or an empty batch, it is 0 with a zero gradient.
        """
        cosines = embeddings @ nn.functional.normalize(self.weight, dim=1).T  # (n, classes)
        own = labels[:, None]  # (n, 1)
        logits = self.scale * cosines.scatter(1, own, self._lowered(cosines.gather(1, own)))  # (n, classes)
        return nn.functional.cross_entropy(logits, labels, reduction="sum") / max(1, len(labels))

    def _lowered(self, cosines: Tensor) -> Tensor:
        """What the margin leaves of the cosines to the own class; finite, with a finite slope, for cosines of 1 and -1 too."""
        if self.kind == "cosface":
            return cosines - self.margin
        sines = (1 - cosines.square()).clamp(min=_SMALLEST_SQUARED_SINE).sqrt()
        turned = cosines * math.cos(self.margin) - sines * math.sin(self.margin)  # cos(angle + margin)
        beyond = cosines <= -math.cos(self.margin)  # angle + margin >= pi
        return torch.where(beyond, cosines - self.margin * math.sin(self.margin), turned)
