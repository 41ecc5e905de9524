"""The stay-near-base term: what training does to the similarities of a batch."""

from torch import Tensor


def similarity_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the pairwise cosines of a batch, before and after the head.

    The similarity-preserving idea of Tung and Mori 2019 and the distance-wise term of RKD (Park et al. 2019), with cosines: it
    holds on to the encoder's similarities and leaves every rotation free.

    student: (n, dim), unit rows of the head's output. teacher: (n, any dim), the base vectors of the same texts, unit rows,
    of the same dtype; no gradient goes to it.
    Gives a scalar, at least 0: the mean over the n * (n - 1) pairs of different rows. Needs two rows; with fewer, or with equal
    similarities, it is 0 with a zero gradient.
    """
    teacher = teacher.detach()
    # A row's similarity to itself is 1 on both sides, up to rounding.
    differences = (student @ student.T - teacher @ teacher.T).fill_diagonal_(0)  # (n, n)
    pairs = len(student) * (len(student) - 1)
    return differences.square().sum() / max(1, pairs)
