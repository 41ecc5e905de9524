"""Searching a version that has no vectors yet: candidates from the base vectors, scored exactly by the head.

The score of a document x for a query q is, with u = normalise(A q + c),

    s(x) = u . (A x + c) / n(x),    n(x) = |A x + c|

Ranked by the numerator alone, as if n were the same for all, the best documents are those with the largest inner product of
x and A^T u: a search of the base vectors. With an offset c that leaves out what is known of n. Around its typical value n0

    n(x)^2 = |A x|^2 + 2 c . A x + |c|^2    gives    n(x) = n0 + (A^T c) . x / n0 + what does not depend on x by a linear map

and for the documents that matter, whose score is about s0, s(x) = (numerator)/n0 - (s0/n0)(n(x) - n0) becomes, but for what is
the same for all documents,

    (A^T u / n0  -  (s0 / n0^2) A^T c) . x

Only the ratio s0/n0 changes the ranking, and not by much: s0 from 0.6 to 0.9 keeps as many of the best, so it is fixed here;
n0 = sqrt(|A|^2 / dim + |c|^2), the root mean square over all directions x, is within a quarter of the mean over real documents.
So nothing has to be known of the collection. First-stage scores are never shown, nor compared with anything.

How many candidates hold the best ten differs from head to head and from query to query. Where one of the best comes from far
down the candidates, more of them are likely to stand behind these: then four times as many are asked for, once.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from zerogate.folded import FoldedHead

MOST_CANDIDATES: Final = 2_000
_TYPICAL_TOP_SCORE: Final = 0.75
_FEWEST: Final = 100
_FACTOR: Final = 5
_WIDER: Final = 4


def candidates_for(limit: int) -> int:
    """How many candidates the first stage has to give for `limit` documents: 100 for 10, 500 for 100, 2,000 for 1,000.

    limit: at most 1,000. Why so many: docs/performance.md, "Instant search".
    """
    return min(max(_FEWEST, _FACTOR * limit), MOST_CANDIDATES)


def wider(rows: NDArray[np.int64], *, limit: int) -> int | None:
    """How many candidates to ask for instead of `candidates_for(limit)`, or None where those were enough.

    rows: what `best_of` chose of them. Far down is behind the first quarter where ten are wanted, the first half from 20 on.
    """
    asked = candidates_for(limit)
    if asked == MOST_CANDIDATES or not len(rows) or rows.max() < max(_FEWEST // 4, _FACTOR * limit // 2):
        return None
    return min(_WIDER * asked, MOST_CANDIDATES)


def first_stage_query(head: FoldedHead, query: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vector, (dim,), to search the base vectors with. query: (out_dim,), of the version, a unit vector."""
    if head.offset is not None:
        square = np.vdot(head.matrix, head.matrix) / head.dim + np.vdot(head.offset, head.offset)
        query = query - np.float32(_TYPICAL_TOP_SCORE / np.sqrt(square)) * head.offset
    found: NDArray[np.float32] = query @ head.matrix
    return found


def best_of(
    head: FoldedHead, query: NDArray[np.float32], base: NDArray[np.float32], *, limit: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The rows of the candidates with the best exact scores, and those scores, best first; at most `limit`.

    query: (out_dim,), of the version. base: (n, dim), the candidates' base vectors. Equal scores stay in the order of the rows.
    """
    scores = head.vectors(base) @ query
    rows = np.argsort(-scores, kind="stable")[:limit]
    return rows, scores[rows]
