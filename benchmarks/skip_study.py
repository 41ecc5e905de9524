"""The claims of the skip-connection literature, measured on this library's heads: numbers and pictures.

    python -m benchmarks.skip_study [--out docs/pictures] [--cache DIR] [--json] [--quick]

Writes skip_study.json and a picture for each claim into --out, and prints the tables of docs/skip-connections.md, which explains
them. The vectors are those of
the standard library's docstrings; the encoder runs once and is cached. All of it takes a few minutes on two cores.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import skip_study_depth as depth
from benchmarks import skip_study_measures as measures
from benchmarks import skip_study_stacks as stacks
from benchmarks.skip_study_heads import STARTS, Material, steps_of
from benchmarks.skip_study_plots import draw
from benchmarks.skip_study_tables import tables
from cli.docstrings import docstring_pairs, pair_rows
from zerogate.cache import CachedEncoder, EmbeddingCache
from zerogate.encoder import Encoder
from zerogate.examples import Row
from zerogate.guard import builtin_guard, make_guard
from zerogate.head_shapes import Activation
from zerogate.recipe import Recipe
from zerogate.task_parts import Rows
from zerogate.tasks import make_task
from zerogate.training import PairExamples
from zerogate.vectors import Vectors

NUMBERS_FILE = "skip_study.json"
_ACTIVATIONS: tuple[Activation, ...] = ("none", "tanh", "relu")


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    seeds: of the trained heads; setting_seeds: for each learning rate and dropout that is tried; fewer_seeds: of stacks.
    pairs: of the gradients by depth. valley_pairs, directions: of the loss around a trained stack.
    every: so many-th row of the dataset is used.
    """

    seeds: range = range(5)
    setting_seeds: range = range(2)
    fewer_seeds: range = range(3)
    epochs: int = 60
    rates: tuple[float, ...] = (1e-2, 3e-3)
    dropouts: tuple[float, ...] = (0.4, 0.2, 0.0)
    stack_epochs: int = 20
    depths: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    pairs: int = 128
    valley_pairs: int = 512
    directions: int = 5
    every: int = 1


QUICK = Effort(
    seeds=range(2),
    setting_seeds=range(1),
    fewer_seeds=range(1),
    epochs=10,
    rates=(1e-2,),
    stack_epochs=5,
    depths=(1, 2, 4, 8),
    pairs=64,
    valley_pairs=128,
    directions=2,
    every=4,
)


def main() -> None:
    """Run the study and write it down."""
    chosen = _arguments()
    started = time.perf_counter()
    effort = QUICK if chosen.quick else Effort()
    material = docstrings(chosen.cache, every=effort.every)
    print(f"{material.task.test.test.size} test queries, encoded after {time.perf_counter() - started:.0f} s", flush=True)
    found = study(material, effort, say=lambda line: print(line, flush=True))
    chosen.out.mkdir(parents=True, exist_ok=True)
    found = rounded(found)
    text = json.dumps(found, allow_nan=False)
    (chosen.out / NUMBERS_FILE).write_text(text + "\n", encoding="utf-8")
    draw(found, chosen.out)
    print(tables(found))
    print(f"numbers and pictures in {chosen.out} after {time.perf_counter() - started:.0f} s", flush=True)
    if chosen.json:
        print(text)


def study(material: Material, effort: Effort, *, say: Callable[[str], None] = lambda _line: None) -> dict[str, Any]:
    """All measurements. say: is told the seconds that each of them took."""
    found: dict[str, Any] = {"data": _facts(material)}
    recipe = Recipe(epochs=effort.epochs)
    steps = steps_of(material, recipe)
    at = sorted({step for step in (0, 1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256) if step < steps} | {steps})

    def timed(name: str, measure: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = measure()
        say(f"{name}: {time.perf_counter() - started:.1f} s")
        return result

    found["step_0"] = timed("step 0", lambda: measures.step_0(material, effort.seeds))
    curves = timed("over training", lambda: measures.over_training(material, recipe, STARTS, seeds=effort.seeds, at=at))
    found["training"] = {"steps": at, "curves": {name: curve.to_dict() for name, curve in curves.items()}}
    found["lead_of_zero_gate"] = measures.leads(material, curves, "zero gate")
    found["settings"] = timed(
        "other settings",
        lambda: measures.settings(material, recipe, rates=effort.rates, dropouts=effort.dropouts, seeds=effort.setting_seeds),
    )
    found["dial"] = timed("dial", lambda: measures.dial(material, curves["zero gate"].heads, _tenths(0, 15)))
    stack_recipe = replace(stacks.STACK, epochs=effort.stack_epochs)
    trained = timed("training stacks", lambda: stacks.trained_stacks(material, stack_recipe, effort.fewer_seeds))
    found["dropping"] = timed("dropping a block", lambda: stacks.dropping(material, trained))
    found["valleys"] = timed(
        "valleys",
        lambda: stacks.valleys(
            material, trained, pairs=effort.valley_pairs, directions=effort.directions, distances=_tenths(-10, 10)
        ),
    )
    found |= timed("depth", lambda: _depth(material, effort))
    return found


def docstrings(cache: Path, *, every: int = 1) -> Material:
    """The standard library's docstrings (every so many-th pair) and the built-in guard, with their base vectors."""
    rows: list[Row] = [dict(row) for row in pair_rows(docstring_pairs()[::every])]
    task = make_task(Rows("pairs", rows))
    guard = make_guard("scored", builtin_guard()[::every])
    stored = EmbeddingCache(cache)
    encoder = CachedEncoder(Encoder("all-MiniLM-L6-v2", device="cpu"), stored)
    vectors = Vectors(encoder.encode(task.queries, role="query"), encoder.encode(task.documents, role="document"))
    guard_vectors = Vectors(encoder.encode(guard.queries, role="query"), encoder.encode(guard.documents, role="document"))
    stored.close()
    return Material(task, vectors, guard, guard_vectors)


def rounded(value: Any) -> Any:
    """The value with all floats to five significant digits, and containers turned into what JSON knows."""
    match value:
        case float():
            return float(f"{value:.5g}")
        case dict():
            return {key: rounded(one) for key, one in value.items()}
        case list() | tuple():
            return [rounded(one) for one in value]
    return value


def _tenths(first: int, last: int) -> list[float]:
    return [round(0.1 * number, 1) for number in range(first, last + 1)]


def _facts(material: Material) -> dict[str, Any]:
    return {
        "training_pairs": len(material.task.train),
        "test_queries": material.task.test.test.size,
        "documents": len(material.test.documents),
        "guard_pairs": material.guard.reporting.size,
        "dim": material.dim,
    }


def _depth(material: Material, effort: Effort) -> dict[str, Any]:
    examples = material.task.train
    assert isinstance(examples, PairExamples)
    chosen = examples.pairs[: effort.pairs]
    queries, documents = material.vectors.queries[chosen[:, 0]], material.vectors.documents[chosen[:, 1]]
    depths, seeds = effort.depths, effort.fewer_seeds
    return {
        "gradients": depth.gradients(queries, documents, depths=depths, activations=_ACTIVATIONS, seeds=seeds),
        "coherence": depth.coherence(queries, documents, depths=depths, activation="relu", seeds=seeds),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "zerogate" / "embeddings"
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"), help="folder of the numbers and pictures")
    parser.add_argument("--cache", type=Path, default=default, help="folder of the embedding cache (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print all numbers as one JSON object, in the last line")
    parser.add_argument("--quick", action="store_true", help="a quarter of the data and less of everything: half a minute")
    return parser.parse_args()


if __name__ == "__main__":
    main()
