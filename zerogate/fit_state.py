"""Where a fit stands between two steps: all that it needs to go on from there, and to come out the same to the bit."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from zerogate.heads import Head
from zerogate.objectives import Objective
from zerogate.recipe import Recipe
from zerogate.records import Record, Records

OnFitStep = Callable[[int, int, float], None]
"""Called before every step with (step, steps, mean loss of the epoch before); may raise to stop."""

_TOTAL: Final = "total"
# The one-cycle schedule (Smith and Topin 2017) with the numbers of torch's OneCycleLR: the share of steps in which the rate
# rises, what the first and the last rate are divided by, and Adam's first momentum, which falls where the rate rises.
_RISING: Final = 0.3
_FIRST_DIVISOR: Final = 25.0
_LAST_DIVISOR: Final = 1e4
_MOMENTUM: Final = (0.95, 0.85)
_SECOND_MOMENTUM: Final = 0.999


class FitState:
    """The optimizer, the random generators and the losses of a fit.

    per_epoch: steps of an epoch; steps: of all epochs; last_epoch: the one after which the recipe stops.
    step: how many are done; losses: the mean of every whole epoch; total: the sum of those of the epoch under way, ().
    snapshots: the head's parameters after some epochs, on the CPU; seconds: spent before a record that was loaded.
    """

    def __init__(
        self, head: Head, objective: Objective, recipe: Recipe, count: int, draws: Mapping[str, torch.Generator]
    ) -> None:
        """count: of the examples. draws: the generators of the head and of the loss by name, which are part of the state."""
        self._head, self._objective = head, objective
        self._parameters = [*head.parameters(), *objective.parameters]
        self.per_epoch = max(1, -(-count // recipe.batch_size))
        self.steps = recipe.epochs * self.per_epoch
        self.last_epoch = recipe.stop_after or recipe.epochs
        self.optimizer = torch.optim.AdamW(
            self._parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
        )
        self._peak = recipe.learning_rate
        self._shuffle = torch.Generator().manual_seed(recipe.seed)
        self._before_order = self._shuffle.get_state()
        self._draws = draws
        self.step = 0
        self.losses: list[float] = []
        self.total = torch.zeros((), device=self.device)
        self.snapshots: dict[int, list[Tensor]] = {}
        self.seconds = 0.0

    @property
    def device(self) -> torch.device:
        return self._parameters[0].device

    @property
    def is_done(self) -> bool:
        """Whether all epochs of the recipe are done."""
        return len(self.losses) >= self.last_epoch

    @property
    def is_finite(self) -> bool:
        """Whether all parameters are numbers."""
        return all(bool(torch.isfinite(one).all()) for one in self._parameters)

    def order(self) -> Tensor:
        """The order of the epoch under way, (k,) int64. In a state that was loaded, the one that had been drawn for it."""
        self._before_order = self._shuffle.get_state()
        return self._objective.order(self._shuffle)

    def set_rate(self) -> None:
        """Give the optimizer the learning rate and the momentum of the step that comes next."""
        # One step more than there are: the very last rate is almost 0, and a step of it would be lost.
        rate, momentum = one_cycle(self.step, self.steps + 1, peak=self._peak)
        for group in self.optimizer.param_groups:
            group["lr"], group["betas"] = rate, (momentum, _SECOND_MOMENTUM)

    def end_epoch(self) -> float:
        """The mean loss of the epoch that is now done."""
        self.losses.append(float(self.total) / self.per_epoch)  # read once an epoch: reading waits for a GPU
        self.total.zero_()
        return self.losses[-1]

    def take_snapshot(self) -> None:
        """Remember the head as it is after the last epoch."""
        self.snapshots[len(self.losses)] = [one.detach().cpu().clone() for one in self._head.parameters()]

    def dump(self, *, seconds: float) -> Record:
        """The state as a record. seconds: spent so far. A fit that is done needs neither moments nor generators any more."""
        kept = {f"parameter {number}": one.detach() for number, one in enumerate(self._parameters)}
        for epoch, snapshot in self.snapshots.items():
            kept |= {f"snapshot {epoch} {number}": one for number, one in enumerate(snapshot)}
        if not self.is_done:
            kept |= {_TOTAL: self.total, "draw shuffle": self._before_order}
            kept |= {f"draw {name}": draw.get_state() for name, draw in self._draws.items()}
            for number, one in enumerate(self._parameters):
                kept |= {f"moment {number} {key}": value for key, value in self._moments()[one].items()}
        facts = {
            "step": self.step,
            "losses": self.losses,
            "seconds": seconds,
            "snapshots": list(self.snapshots),
        }
        return Record({name: one.cpu().numpy() for name, one in kept.items()}, facts)

    def load(self, record: Record) -> None:
        """Stand where the record was made."""
        # A copy has memory of its own, as torch lays it out.
        found = {name: torch.tensor(one) for name, one in record.arrays.items()}
        with torch.no_grad():
            for number, parameter in enumerate(self._parameters):
                parameter.copy_(found[f"parameter {number}"])
        self.step, self.losses, self.seconds = (record.facts[name] for name in ("step", "losses", "seconds"))
        for epoch in record.facts["snapshots"]:
            self.snapshots[epoch] = [found[f"snapshot {epoch} {number}"] for number, _ in enumerate(self._head.parameters())]
        if self.is_done:
            return
        self.total.copy_(found[_TOTAL])
        for name, draw in {"shuffle": self._shuffle, **self._draws}.items():
            draw.set_state(found[f"draw {name}"])
        for name, one in found.items():
            if name.startswith("moment "):
                _, place, key = name.split()
                self._moments()[self._parameters[int(place)]][key] = one.to(self.device)

    def _moments(self) -> dict[nn.Parameter, dict[str, Tensor]]:
        """AdamW's state; it makes a parameter's at the first step."""
        state: Any = self.optimizer.state  # a default dictionary
        found: dict[nn.Parameter, dict[str, Tensor]] = state
        return found


def one_cycle(step: int, steps: int, *, peak: float) -> tuple[float, float]:
    """The learning rate and the momentum of a step of so many: the rate rises to its peak and falls to almost 0 along cosines."""
    top, last = _RISING * steps - 1, steps - 1
    low, high = _MOMENTUM[1], _MOMENTUM[0]
    if step <= top:
        share = step / top if top else 1.0
        return _between(peak / _FIRST_DIVISOR, peak, share), _between(high, low, share)
    share = (step - top) / (last - top)
    return _between(peak, peak / _FIRST_DIVISOR / _LAST_DIVISOR, share), _between(low, high, share)


def _between(first: float, last: float, share: float) -> float:
    """From first to last along half a cosine."""
    return last + (first - last) / 2 * (1 + math.cos(math.pi * share))


class Keeper:
    """Keeps a fit's state: now and then, when it is stopped, and when it is done. Without records it keeps nothing."""

    def __init__(self, records: Records | None, name: str, state: FitState, started: float) -> None:
        self._records, self._name, self._state, self._started = records, name, state, started

    @property
    def seconds(self) -> float:
        """Spent on the fit, before a state that was found as well."""
        return self._state.seconds + time.perf_counter() - self._started

    def load(self) -> None:
        """Go on from the state that was kept, if there is one."""
        found = None if self._records is None else self._records.find(self._name)
        if found is not None:
            self._state.load(found)

    def keep(self) -> None:
        if self._records is not None:
            self._records.keep(self._name, self._state.dump(seconds=self.seconds))

    def before_step(self, on_step: OnFitStep | None) -> None:
        """Keep the state if that is due, and tell on_step. It may raise to stop: then everything is written."""
        if self._records is not None and self._records.is_due():
            self.keep()
        if on_step is None:
            return
        losses = self._state.losses
        try:
            on_step(self._state.step, self._state.steps, losses[-1] if losses else float("nan"))
        except BaseException:
            self.keep()
            if self._records is not None:
                self._records.write()
            raise
