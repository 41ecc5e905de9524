"""Every token has one place, in a slot of its row and short neighbours, and sees its own row only."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from zerogate.encoder_slots import slots_of

lengths_of_rows = st.lists(st.integers(0, 80), min_size=1, max_size=30).filter(any)


@given(lengths_of_rows, st.integers(0, 20))
def test_each_token_has_one_place_and_comes_back_from_it(lengths: list[int], spare: int) -> None:
    slots = slots_of(lengths, spare=spare, dtype=torch.float32)
    count = sum(lengths)

    assert slots.source[slots.back[:count]].tolist() == list(range(count))
    assert len(set(slots.back[:count].tolist())) == count
    assert slots.back[count:].tolist() == [0] * spare
    assert len(slots.source) == sum(number * length for number, length in slots.runs)
    assert all(length % 16 == 0 for _, length in slots.runs)
    assert len({length for _, length in slots.runs}) == len(slots.runs)
    assert [tuple(mask.shape) for mask in slots.masks] == [(number, 1, length, length) for number, length in slots.runs]


@given(lengths_of_rows)
def test_attention_over_slots_is_attention_over_each_row(lengths: list[int]) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, sum(lengths), 4)
    slots = slots_of(lengths, spare=0, dtype=torch.float32)

    parts, start = [], 0
    for (number, length), mask in zip(slots.runs, slots.masks, strict=True):
        places = slots.source[start : start + number * length]
        start += number * length
        of_run = [x[places].view(number, 1, length, 4) for x in (q, k, v)]
        parts.append(scaled_dot_product_attention(*of_run, attn_mask=mask).view(-1, 4))
    found = torch.cat(parts)[slots.back]

    rows = [
        scaled_dot_product_attention(*(x[None] for x in row)) for row in zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
    ]
    expected = torch.cat([row[0] for row in rows if row.shape[1]])
    assert torch.allclose(found, expected, atol=1e-5)


def test_short_neighbours_share_a_slot_and_long_rows_stand_alone() -> None:
    slots = slots_of([100, 30, 30, 20, 20, 20, 4], spare=0, dtype=torch.float32)

    assert slots.runs == [(2, 64), (1, 112)]  # 30 + 30, then 20 + 20 + 20 + 4; 100
