"""Losses over rows with labels: rows of one label shall come together, rows of two labels apart."""

import torch
from torch import Tensor

from zerogate.losses.contrastive import multi_positive_contrastive
from zerogate.losses.labels import positives_and_negatives


def supervised_contrastive(embeddings: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    """Supervised contrastive loss, the mean over positives outside the logarithm (L_out of Khosla et al. 2020, equation 2).

    For every row, the mean over the other rows of its label of -log(softmax over all other rows); then the mean over the rows.

    embeddings: (n, dim) floats, unit rows. labels: (n,) integers.
    temperature: divides the similarities, > 0; the paper's is 0.1.
    Gives a scalar. A row needs another row of its label and a row of another label, otherwise it is no anchor (but stays
    others' negative); where no row has both (one group, or groups of one), the loss is 0 with a zero gradient.
    """
    positive, _ = positives_and_negatives(labels)
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return multi_positive_contrastive(embeddings, embeddings, positive, temperature=temperature, ignored=itself)


def prototypical(embeddings: Tensor, prototypes: Tensor, own: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    """Classify every row by the nearest prototype of a label (Snell et al. 2017), with cosines instead of distances.

    Cross entropy over cosine / temperature, the mean over the rows. A row is compared with its own label's prototype as it is
    without that row: otherwise a small group would only learn to find itself.

    embeddings: (n, dim), prototypes: (classes, dim), own: (n, dim), the prototype of each row's label without the row; floats,
        unit rows. labels: (n,) int64 in [0, classes).
    temperature: > 0. Gives a scalar; with a single class it is 0.
    """
    cosines = embeddings @ prototypes.T  # (n, classes)
    to_own = (embeddings * own).sum(dim=1, keepdim=True).to(cosines.dtype)  # (n, 1)
    return torch.nn.functional.cross_entropy(cosines.scatter(1, labels[:, None], to_own) / temperature, labels)


def circle(embeddings: Tensor, labels: Tensor, *, margin: float, scale: float) -> Tensor:
    """Circle loss (Sun et al. 2020, section 3), the mean over the rows as anchors.

    With s_p the cosines of an anchor to the rows of its label and s_n those to all others:

        log(1 + sum of exp(scale * a_n * (s_n - margin)) * sum of exp(-scale * a_p * (s_p - 1 + margin)))
        a_p = max(0, 1 + margin - s_p)        a_n = max(0, s_n + margin)

    The weights a_p and a_n make a similarity that is far from its optimum move faster; they are constants in the gradient.

    embeddings: (n, dim) floats, unit rows. labels: (n,) integers.
    margin: in [0, 1): the decision boundary is a circle of radius sqrt(2) * margin around s_p = 1, s_n = 0; usual is 0.25.
    scale: > 0; the paper's are 80 to 256.
    Gives a scalar. A row needs another row of its label and a row of another label, otherwise it is no anchor; where no row
    has both, the loss is 0 with a zero gradient.
    """
    positive, negative = positives_and_negatives(labels)
    usable = positive.any(dim=1) & negative.any(dim=1)  # (n,)
    similarities = embeddings[usable] @ embeddings.T  # (u, n)
    constant = similarities.detach()
    pull = -scale * (1 + margin - constant).clamp(min=0) * (similarities - 1 + margin)  # (u, n)
    push = scale * (constant + margin).clamp(min=0) * (similarities - margin)  # (u, n)
    pull = pull.masked_fill(~positive[usable], float("-inf")).logsumexp(dim=1)  # (u,)
    push = push.masked_fill(~negative[usable], float("-inf")).logsumexp(dim=1)  # (u,)
    return torch.nn.functional.softplus(pull + push).sum() / max(1, len(pull))
