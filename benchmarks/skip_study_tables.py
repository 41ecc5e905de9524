"""The skip study's numbers as Markdown tables, for the terminal and, line by line, for docs/skip-connections.md."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks.skip_study_depth import short_name


def tables(found: dict[str, Any]) -> str:
    """All tables, with an empty line between them."""
    made = (_step_0, _training, _settings, _gradients, _loss_gradients, _coherence, _dropping, _valleys, _dial)
    return "\n\n".join(one(found) for one in made)


def _step_0(found: dict[str, Any]) -> str:
    encoder = found["step_0"]["encoder"]
    rows = [
        [
            name,
            f"{np.mean(one['mrr@10']):.4f}",
            f"{np.mean(one['mrr@10']) - encoder:+.4f}",
            f"{100 * one['moved']:.1f} %",
            "yes" if one["bit_for_bit"] else "no",
        ]
        for name, one in found["step_0"]["heads"].items()
    ]
    return _table(
        [f"before the first step (encoder: {encoder:.4f})", "MRR@10", "difference", "vectors moved by", "y = x bit for bit"], rows
    )


def _training(found: dict[str, Any]) -> str:
    steps = found["training"]["steps"]
    shown = [place for place, step in enumerate(steps) if step in (16, 32, 64, 128) or place == len(steps) - 1]
    rows = []
    for name, curve in found["training"]["curves"].items():
        scores = np.asarray(curve["mrr@10"])  # (seeds, steps)
        lead = found["lead_of_zero_gate"].get(name)
        rows.append(
            [
                name,
                *(f"{scores[:, place].mean():.3f}" for place in shown),
                f"{scores[:, -1].min():.3f} to {scores[:, -1].max():.3f}",
                _interval(lead["difference"], lead["low"], lead["high"]) if lead else "",
            ]
        )
    titles = [f"step {steps[place]}" for place in shown]
    return _table(["MRR@10 after", *titles, "worst to best seed", "zero gate's lead [95 %]"], rows)


def _settings(found: dict[str, Any]) -> str:
    columns = list(dict.fromkeys((one["learning_rate"], one["skip_dropout"]) for one in found["settings"]))
    rows: dict[str, list[str]] = {}
    for one in found["settings"]:
        rows.setdefault(one["head"], []).append(_mean(one["mrr@10"]))
    titles = [f"rate {rate:g}, dropout {dropout:g}" for rate, dropout in columns]
    return _table(["MRR@10 at the end", *titles], [[name, *scores] for name, scores in rows.items()])


def _gradients(found: dict[str, Any]) -> str:
    depths, raw = found["gradients"]["depths"], found["gradients"]["raw"]
    rows = [[name, *(_times(raw[activation][name][-1] / raw[activation][name][0]) for activation in raw)] for name in raw["none"]]
    titles = ["linear", "tanh", "relu"]
    return _table([f"gradient at block 1 of {depths[-1]} / of a single block", *titles], rows)


def _loss_gradients(found: dict[str, Any]) -> str:
    depths, loss, cosine = (found["gradients"][what] for what in ("depths", "loss", "cosine"))
    rows = [
        [
            short_name(name),
            *(_times(loss[activation][name][-1] / loss[activation][name][0]) for activation in loss),
            f"{cosine['relu'][name][-1]:.2f}",
        ]
        for name in loss["none"]
        if short_name(name)
    ]
    titles = ["linear", "tanh", "relu", "relu: mean cosine of two texts"]
    return _table([f"the same for the loss, at {depths[-1]} blocks", *titles], rows)


def _coherence(found: dict[str, Any]) -> str:
    depths, cosine = found["coherence"]["depths"], found["coherence"]["cosine"]
    rows = [[short_name(name), *(f"{one:.2f}" for one in values)] for name, values in cosine.items()]
    return _table(["cosine of two texts' gradients, relu", *(f"depth {depth}" for depth in depths)], rows)


def _dropping(found: dict[str, Any]) -> str:
    rows = []
    for name, one in found["dropping"].items():
        without = np.mean(one["without"], axis=0)  # (blocks,)
        rows.append([name, _mean(one["whole"]), *(f"{value:.3f}" for value in (without.min(), without.mean(), without.max()))])
    return _table(["MRR@10 of a stack of eight", "whole", "one block taken out: lowest", "mean", "highest"], rows)


def _valleys(found: dict[str, Any]) -> str:
    distances, losses = found["valleys"]["distances"], found["valleys"]["loss"]
    shown = [distances.index(far) for far in (0.0, 0.2, 0.5, 1.0)]
    rows = [[name, *(f"{np.mean(rows, axis=0)[place]:.2f}" for place in shown)] for name, rows in losses.items()]
    return _table(["training loss", *(f"at distance {distances[place]}" for place in shown)], rows)


def _dial(found: dict[str, Any]) -> str:
    dial, mean = found["dial"], found["dial"]["mean"]
    shown = [place for place, strength in enumerate(dial["strengths"]) if strength in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.5)]
    scores = [f"{mean['mrr@10'][place]:.3f}" for place in shown]
    lost = [_interval(mean["forgetting"][place], mean["low"][place], mean["high"][place]) for place in shown]
    return _table(
        ["strength", *(str(dial["strengths"][place]) for place in shown)], [["MRR@10", *scores], ["forgetting [95 %]", *lost]]
    )


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:+.4f} [{low:+.4f}, {high:+.4f}]"


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f}"


def _times(factor: float) -> str:
    return f"{factor:.2f}" if 0.01 <= factor < 1_000 else f"{factor:.0e}"


def _table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(titles), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
