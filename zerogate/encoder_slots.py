"""Where attention finds the tokens of a pass: in slots whose lengths the processor likes.

Attention of torch on a CPU takes 2.6 µs a token where a row's length is no multiple of 16, and 1.1 to 1.7 where it is. So a row
stands in a slot that is filled up to such a length, short rows stand in one slot together, and a mask lets a token see its own
row only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

_MULTIPLE = 16
# Rows share a slot of at most so many tokens: 64 are about as fast as 32 and leave fewer places empty.
_SHARED = 64


@dataclass(frozen=True)
class Slots:
    """The places of all slots, one slot behind the other; slots of one length together.

    source: (places,) int64, the token at each place; 0 where there is none. back: (tokens and spare ones,) int64, the place of
    each token; 0 for the spare ones. runs: how many slots of which length. masks: of each run, (slots, 1, length, length), 0
    where a token may look and -inf elsewhere.
    """

    source: Tensor
    back: Tensor
    runs: list[tuple[int, int]]
    masks: list[Tensor]


def slots_of(lengths: Sequence[int], *, spare: int, dtype: torch.dtype) -> Slots:
    """Slots for rows of so many tokens each, which lie behind each other, before the spare ones. dtype: of the masks."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    source, runs, masks = [], [], []
    back = np.zeros(starts[-1] + spare, dtype=np.int64)
    first = 0
    by_length = partial(_filled, lengths)
    for length, slots in groupby(sorted(_shared(lengths), key=by_length), key=by_length):
        members = list(slots)
        tokens = np.zeros((len(members), length), dtype=np.int64)
        owners = np.full((len(members), length), -1)
        for number, (row, end) in enumerate(members):
            begin, stop = starts[row], starts[end]
            tokens[number, : stop - begin] = np.arange(begin, stop)
            owners[number, : stop - begin] = np.repeat(np.arange(row, end), lengths[row:end])
            place = first + number * length
            back[begin:stop] = np.arange(place, place + stop - begin)
        first += tokens.size
        source.append(tokens.ravel())
        others = torch.from_numpy(owners[:, None, :, None] != owners[:, None, None, :])
        runs.append((len(members), length))
        masks.append(torch.zeros(others.shape, dtype=dtype).masked_fill_(others, -torch.inf))
    return Slots(torch.from_numpy(np.concatenate(source)), torch.from_numpy(back), runs, masks)


def _shared(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """From which row to which one a slot is shared: neighbours, as many as fit; a longer row stands alone."""
    begin, held = 0, 0
    for row, length in enumerate(lengths):
        if row > begin and held + length > _SHARED:
            yield begin, row
            begin, held = row, 0
        held += length
    yield begin, len(lengths)


def _filled(lengths: Sequence[int], slot: tuple[int, int]) -> int:
    tokens = sum(lengths[slot[0] : slot[1]])
    return max(1, -(-tokens // _MULTIPLE)) * _MULTIPLE
