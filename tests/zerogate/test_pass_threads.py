"""A small pass gets few threads, and nobody else notices."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from zerogate.pass_threads import threads_for


@pytest.mark.parametrize(
    ("tokens", "at_most", "expected"),
    [(0, None, 1), (200, None, 1), (256, None, 2), (600, None, 4), (9_999, None, 4), (9_999, 2, 2)],
)
def test_a_pass_gets_a_thread_for_each_128_tokens_up_to_those_there_are(tokens: int, at_most: int | None, expected: int) -> None:
    with ThreadpoolController().limit(limits=4, user_api="openmp"):
        with threads_for(tokens, at_most=at_most):
            assert torch.get_num_threads() == expected
        assert torch.get_num_threads() == 4


def test_other_threads_keep_theirs() -> None:
    with ThreadPoolExecutor(1) as other:
        before = other.submit(torch.get_num_threads).result()
        with ThreadpoolController().limit(limits=4, user_api="openmp"), threads_for(10):
            assert other.submit(torch.get_num_threads).result() == before
            with ThreadPoolExecutor(1) as new:
                assert new.submit(torch.get_num_threads).result() == before
