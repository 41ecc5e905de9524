"""Threads for a pass of an encoder on a CPU: a small pass gets few.

Threads that work on one small product mostly wait for each other: on two cores a pass of one text takes 3.2 ms in one thread and
4.7 in two, and where one core has other work 3.1 and 6.0; of 16 texts 14 ms either way, and 14 and 19.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

# 200 tokens are as fast in one thread as in two, 450 are not.
_TOKENS_PER_THREAD = 128

# `torch.set_num_threads` would hold for every thread that is new to torch: a training that begins during a small pass would stay
# in one thread. OpenMP's own limit holds for the calling thread alone.
_openmp = ThreadpoolController().select(user_api="openmp")


def threads_for(tokens: int, *, at_most: int | None = None) -> AbstractContextManager[object]:
    """A block in which this thread's products get a thread for each 128 tokens: at least one, and no more than it has now."""
    now = torch.get_num_threads()
    enough = max(1, min(tokens // _TOKENS_PER_THREAD, now if at_most is None else at_most))
    return _openmp.limit(limits=enough) if enough < now else nullcontext()
