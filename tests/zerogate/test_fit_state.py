"""The rate of every step: the one-cycle schedule as torch has it."""

import pytest
import torch
from torch import nn

from zerogate.fit_state import one_cycle


@pytest.mark.parametrize("steps", [2, 3, 4, 7, 10, 361])
@pytest.mark.parametrize("peak", [1e-2, 0.5])
def test_rates_and_momenta_are_those_of_torch(steps: int, peak: float) -> None:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=peak)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=peak, total_steps=steps)
    (group,) = optimizer.param_groups

    for step in range(steps):
        rate, momentum = one_cycle(step, steps, peak=peak)
        assert rate == pytest.approx(group["lr"], rel=1e-6)
        assert (momentum, 0.999) == pytest.approx(group["betas"])
        optimizer.step()
        if step < steps - 1:
            schedule.step()
