"""A small pass gets few threads, and nobody else notices."""

import os
import subprocess
import sys

import pytest
import torch
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from zerogate.pass_threads import threads_for

A_THREAD = 1_400_000_000

OTHERS = """
from concurrent.futures import ThreadPoolExecutor
import torch
from zerogate.pass_threads import threads_for

assert torch.get_num_threads() == 2
with ThreadPoolExecutor(1) as old:
    assert old.submit(torch.get_num_threads).result() == 2
    with threads_for(1):
        assert torch.get_num_threads() == 1
        with ThreadPoolExecutor(1) as new:
            for other in (old, new):
                assert other.submit(torch.get_num_threads).result() == 2
assert torch.get_num_threads() == 2
"""


@pytest.mark.parametrize(
    ("work", "at_most", "expected"), [(0, None, 1), (1.9, None, 1), (2, None, 2), (4.5, None, 4), (99, None, 4), (99, 2, 2)]
)
def test_a_pass_gets_as_many_threads_as_its_work_is_worth_up_to_those_there_are(
    work: float, at_most: int | None, expected: int
) -> None:
    torch.get_num_threads()  # a thread's first word to torch sets its number
    with ThreadpoolController().limit(limits=4, user_api="openmp"):
        with threads_for(int(work * A_THREAD), at_most=at_most):
            assert torch.get_num_threads() == expected
        assert torch.get_num_threads() == 4


def test_other_threads_keep_theirs_and_new_ones_get_all() -> None:
    subprocess.run([sys.executable, "-c", OTHERS], check=True, env={**os.environ, "OMP_NUM_THREADS": "2"})
