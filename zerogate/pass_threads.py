"""Threads for a pass of a packed encoder: a small pass gets few.

Threads that work on one small product mostly wait for each other: on two cores a pass of one text takes 3.2 ms in one thread and
4.7 in two, and where one core has other work 3.1 and 6.0; of 16 texts 14 ms either way, and 14 and 19.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

# 128 tokens of all-MiniLM-L6-v2, some 3 ms. 200 of its tokens are as fast in one thread as in two, 450 are not.
_MULTIPLICATIONS_PER_THREAD = 1_400_000_000

# `torch.set_num_threads` would hold for every thread that is new to torch: a training that begins during a small pass would stay
# in one thread. OpenMP's own limit holds for the calling thread alone. (MKL, which other models' fp32 products use, does not
# always follow it.)
_openmp = ThreadpoolController().select(user_api="openmp")


def threads_for(multiplications: int, *, at_most: int | None = None) -> AbstractContextManager[object]:
    """A block in which this thread's OpenMP gives a pass as many threads as its work is worth.

    At least one, at most `at_most` and, always, those that this thread has now.
    """
    now = torch.get_num_threads()
    enough = max(1, min(multiplications // _MULTIPLICATIONS_PER_THREAD, now if at_most is None else at_most))
    return _openmp.limit(limits=enough) if enough < now else nullcontext()
