"""Fitting a head: it learns, it repeats itself to the byte, it can be stopped, and it sees every pair once an epoch."""

import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from zerogate import fitting
from zerogate.errors import TooFewExamples, TrainingDiverged
from zerogate.fitting import Fit, fit
from zerogate.folded import FoldedHead
from zerogate.heads import SkipHead
from zerogate.recipe import Recipe

DIM = 32
QUICK = Recipe(epochs=15, batch_size=128, temperature=0.05, dropout=0.2)

Vectors = NDArray[np.float32]


def unit(rows: NDArray[np.float64]) -> Vectors:
    found: Vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return found


def toy(count: int, *, seed: int) -> tuple[Vectors, Vectors]:
    """Anchors and positives that share 8 hidden directions of 32; the other 24 are noise, and louder."""
    draw = np.random.default_rng(seed)
    hidden, _ = np.linalg.qr(np.random.default_rng(99).normal(size=(DIM, DIM)))
    meaning = draw.normal(size=(count, 8))
    sides = [np.hstack([meaning + 0.1 * draw.normal(size=(count, 8)), 1.2 * draw.normal(size=(count, 24))]) for _ in range(2)]
    anchors, positives = (unit(side @ hidden) for side in sides)
    return anchors, positives


def one_to_one(count: int) -> NDArray[np.int64]:
    return np.stack([np.arange(count), np.arange(count)], axis=1)


def recall_at_1(head: FoldedHead, anchors: Vectors, positives: Vectors) -> float:
    queries, documents = head.vectors(anchors), head.vectors(positives)
    return float(np.mean([int(np.argmax(documents @ query)) == row for row, query in enumerate(queries)]))


def fit_toy(recipe: Recipe = QUICK, *, count: int = 300) -> Fit:
    return fit(*toy(count, seed=1), one_to_one(count), recipe)


def digest(fitted: Fit) -> str:
    parts = [part for block in fitted.head.blocks() for part in (block.gate, block.weight, block.bias) if part is not None]
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_training_lifts_the_recall_of_pairs_that_it_has_not_seen(blocks: int, bias: bool) -> None:
    held_out = toy(200, seed=2)
    before = recall_at_1(FoldedHead.identity(DIM), *held_out)

    fitted = fit_toy(Recipe(epochs=20, batch_size=128, temperature=0.05, blocks=blocks, bias=bias), count=500)

    assert before < 0.1
    assert recall_at_1(fitted.head.fold(), *held_out) > before + 0.3


def test_a_fit_reports_one_falling_loss_an_epoch() -> None:
    fitted = fit_toy()

    assert len(fitted.losses) == QUICK.epochs
    assert fitted.losses[-1] < 0.7 * fitted.losses[0]
    assert fitted.seconds > 0


def test_the_head_that_comes_back_is_ready_to_be_used() -> None:
    fitted = fit_toy()
    x = torch.from_numpy(toy(20, seed=3)[0])

    first, second = (fitted.head(x) for _ in range(2))

    assert not fitted.head.training
    assert torch.equal(first, second)  # nothing is dropped
    np.testing.assert_allclose(first.detach().numpy(), fitted.head.fold().raw(x.numpy()), atol=1e-6)


def test_the_identity_at_the_start_is_measured() -> None:
    fitted = fit_toy()
    anchors, positives = (torch.from_numpy(side) for side in toy(300, seed=1))
    fresh = SkipHead(DIM, dropout=QUICK.dropout, seed=QUICK.seed).eval()

    assert fitted.identity_at_start is True
    assert torch.equal(fresh(anchors), anchors)
    assert torch.equal(fresh(positives), positives)


def test_a_head_that_does_not_start_as_the_identity_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class OpenGate(SkipHead):
        def __init__(self, dim: int, *, blocks: int, bias: bool, dropout: float, seed: int) -> None:
            super().__init__(dim, blocks=blocks, bias=bias, dropout=dropout, seed=seed)
            torch.nn.init.constant_(self.gates[0], 1 / (1 + math.exp(4)))

    monkeypatch.setattr(fitting, "SkipHead", OpenGate)

    assert fit_toy().identity_at_start is False


@pytest.mark.parametrize("recipe", [QUICK, Recipe(epochs=5, batch_size=64, blocks=2, bias=True, seed=3)])
def test_the_same_seed_and_vectors_give_the_same_bytes_and_another_seed_others(recipe: Recipe) -> None:
    first = fit_toy(recipe)
    torch.manual_seed(123)  # what others draw has no part in it
    torch.rand(7)

    second = fit_toy(recipe)
    other = fit_toy(Recipe(**{**recipe.to_dict(), "seed": recipe.seed + 1}))

    assert digest(first) == digest(second)
    assert first.losses == second.losses
    assert digest(first) != digest(other)


def test_another_process_gives_the_same_bytes(tmp_path: Path) -> None:
    anchors, positives = toy(300, seed=1)
    np.savez(tmp_path / "toy.npz", anchors=anchors, positives=positives, pairs=one_to_one(300))
    code = """
import hashlib, json, sys
import numpy as np
import torch
from zerogate.fitting import fit
from zerogate.recipe import Recipe

torch.set_num_threads(int(sys.argv[3]))
toy = np.load(sys.argv[1])
fitted = fit(toy["anchors"], toy["positives"], toy["pairs"], Recipe.from_dict(json.loads(sys.argv[2])))
block, = fitted.head.blocks()
print(hashlib.sha256(block.gate.tobytes() + block.weight.tobytes()).hexdigest())
"""
    arguments = [str(tmp_path / "toy.npz"), json.dumps(QUICK.to_dict()), str(torch.get_num_threads())]

    found = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, timeout=60)

    assert found.stdout.strip() == digest(fit_toy())


def test_inputs_are_not_modified() -> None:
    inputs = (*toy(100, seed=1), one_to_one(100))
    before = [one.tobytes() for one in inputs]

    fit(*inputs, QUICK)

    assert [one.tobytes() for one in inputs] == before


def test_a_callback_that_raises_stops_at_once_and_its_exception_comes_through_untouched() -> None:
    class Cancelled(BaseException):
        pass

    stop = Cancelled("enough")
    seen = []

    def on_step(step: int, steps: int, loss: float) -> None:
        seen.append(step)
        if step == 4:
            raise stop

    with pytest.raises(Cancelled) as caught:
        fit(*toy(300, seed=1), one_to_one(300), QUICK, on_step=on_step)

    assert caught.value is stop
    assert caught.value.__cause__ is None
    assert seen == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("count", "batch_size", "batches"), [(300, 128, 3), (256, 128, 2), (257, 128, 3), (8, 512, 1), (9, 2, 5)]
)
def test_there_are_as_many_steps_as_batches_and_each_is_told_with_the_loss_before(
    count: int, batch_size: int, batches: int
) -> None:
    told: list[tuple[int, int, float]] = []
    recipe = Recipe(epochs=4, batch_size=batch_size)

    fitted = fit(*toy(count, seed=1), one_to_one(count), recipe, on_step=lambda *step: told.append(step))

    assert [(step, steps) for step, steps, _ in told] == [(step, 4 * batches) for step in range(4 * batches)]
    assert math.isnan(told[0][2])
    losses = [loss for _, _, loss in told[1 : batches + 1]]
    assert fitted.losses[0] == pytest.approx(sum(losses) / batches)


def frozen(batch_size: int) -> Recipe:
    """A recipe that leaves the head where it is, so that every loss has a closed form."""
    return Recipe(epochs=2, batch_size=batch_size, learning_rate=1e-30, dropout=0.0, temperature=0.5)


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"), [(50, 16, [12, 12, 13, 13]), (33, 32, [16, 17]), (48, 16, [16, 16, 16])]
)
def test_the_batches_of_an_epoch_are_of_nearly_equal_size(count: int, batch_size: int, sizes: list[int]) -> None:
    own_direction = np.eye(64, dtype=np.float32)[:count]
    told: list[float] = []

    fit(own_direction, own_direction, one_to_one(count), frozen(batch_size), on_step=lambda _, __, loss: told.append(loss))

    # All negatives are orthogonal: the loss of a batch of b pairs is log(1 + (b - 1) exp(-1 / 0.5)).
    found = [1 + (math.exp(loss) - 1) * math.exp(2) for loss in told[1 : len(sizes) + 1]]
    assert sorted(found) == pytest.approx(sizes, abs=1e-3)


def test_every_pair_is_seen_once_an_epoch() -> None:
    count, batch_size = 48, 16
    angles = np.linspace(0.0, 1.5, count)
    anchors = np.eye(2 * count)[:count]
    positives = np.cos(angles)[:, None] * anchors + np.sin(angles)[:, None] * np.eye(2 * count)[count:]

    fitted = fit(anchors.astype(np.float32), positives.astype(np.float32), one_to_one(count), frozen(batch_size))

    # Each pair has a loss of its own, and no pair touches another: seen twice or not at all, it would change the sum.
    per_pair = np.log1p((batch_size - 1) * np.exp(-np.cos(angles) / 0.5))
    assert fitted.losses == pytest.approx([per_pair.mean()] * 2, rel=1e-6)
    assert np.abs(np.diff(per_pair)).min() > 0


def test_pairs_that_share_a_text_are_no_negatives_of_each_other() -> None:
    anchors, positives = np.eye(16, dtype=np.float32), np.eye(16, dtype=np.float32)[:1]
    pairs = np.stack([np.arange(16), np.zeros(16, dtype=np.int64)], axis=1)

    fitted = fit(anchors, positives, pairs, frozen(16))

    assert fitted.losses == [0.0, 0.0]


def test_pairs_choose_their_rows_by_index() -> None:
    anchors, positives = toy(120, seed=1)
    order = np.random.default_rng(5).permutation(120)

    straight = fit(anchors, positives, one_to_one(120), QUICK)
    mixed = fit(anchors, positives[order], np.stack([np.arange(120), np.argsort(order)], axis=1), QUICK)

    assert digest(straight) == digest(mixed)


def test_fewer_than_eight_pairs_are_too_few() -> None:
    with pytest.raises(TooFewExamples, match="pairs to train on: found 7, at least 8 are needed") as caught:
        fit(*toy(7, seed=1), one_to_one(7), QUICK)

    assert (caught.value.found, caught.value.needed) == (7, 8)
    assert len(fit(*toy(8, seed=1), one_to_one(8), QUICK).losses) == QUICK.epochs


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_the_training(poison: float) -> None:
    anchors, positives = toy(100, seed=1)
    anchors[3, 5] = poison

    with pytest.raises(TrainingDiverged, match="the loss became nan at step 0") as caught:
        fit(anchors, positives, one_to_one(100), QUICK)

    assert caught.value.step == 0
    assert math.isnan(caught.value.loss)
