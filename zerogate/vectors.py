"""The vectors of a task's texts, on their two sides."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Vectors:
    """queries: (n, dim), documents: (m, dim); float32, unit rows of one version. m is 0 where a task has one side only."""

    queries: NDArray[np.float32]
    documents: NDArray[np.float32]
