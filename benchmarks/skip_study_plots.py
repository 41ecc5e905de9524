"""The pictures of the skip study: one idea each, from the numbers that `benchmarks.skip_study` measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.skip_study_depth import short_name
from zerogate.learning import DEFAULT_BUDGET

# Okabe and Ito's colours, which people with any colour vision tell apart; line styles say the same once more.
_BLACK, _ORANGE, _SKY, _GREEN, _BLUE, _RED, _PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
_STARTS: Final = {
    "zero gate": (_BLUE, "-", "o"),
    "gate sigmoid(-4)": (_SKY, "--", "s"),
    "plain, random start": (_RED, "-.", "^"),
    "plain, identity start": (_ORANGE, ":", "D"),
    "gelu MLP, random start": (_PURPLE, "-", "v"),
}
_WIRINGS: Final = {
    "plain, PyTorch's start": (_RED, "-.", "^"),
    "plain, He's start": (_ORANGE, "-.", "v"),
    "residual, gate 1": (_BLACK, "--", "s"),
    "residual, gate 0.1": (_SKY, "-", "D"),
    "residual, gate 0": (_BLUE, "-", "o"),
    "concat, gate 1": (_GREEN, ":", "P"),
}
_STACKS: Final = {
    "residual": (_BLUE, "-", "o"),
    "plain, random start": (_RED, "-.", "^"),
    "plain, identity start": (_ORANGE, ":", "D"),
    "residual, relu": (_SKY, "-", "s"),
    "plain, random start, relu": (_PURPLE, "-.", "v"),
}
_ACTIVATIONS: Final = {"none": "linear", "tanh": "tanh", "relu": "relu"}
_STYLE: Final[dict[Any, Any]] = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "figure.dpi": 110,
}


def draw(found: dict[str, Any], folder: Path) -> None:
    """Draw every picture into the folder, as PNG."""
    with mpl.rc_context(_STYLE):
        for name, figure in _pictures(found).items():
            # Without the name and version of the program the same numbers give the same bytes.
            figure.savefig(folder / f"{name}.png", metadata={"Software": None})


def _pictures(found: dict[str, Any]) -> dict[str, Figure]:
    return {
        "step_0": step_0(found["step_0"]),
        "over_training": over_training(found["training"], found["step_0"]["encoder"]),
        "gradient_by_depth": gradient_by_depth(found["gradients"]),
        "gradient_of_the_loss": gradient_of_the_loss(found["gradients"]),
        "shattered_gradients": shattered_gradients(found["coherence"]),
        "dropping_a_block": dropping_a_block(found["dropping"], found["step_0"]["encoder"]),
        "valleys": valleys(found["valleys"]),
        "dial": dial(found["dial"]),
    }


def step_0(found: dict[str, Any]) -> Figure:
    """One row of points for each head: a point for each seed."""
    figure, (axes,) = _figure(1, 1, height=3.0)
    heads = list(reversed(found["heads"].items()))
    for row, (name, values) in enumerate(heads):
        colour, _, marker = _STARTS[name]
        scores = values["mrr@10"]
        axes.plot(scores, [row] * len(scores), marker, color=colour, markersize=7, alpha=0.7)
        exact = "exactly the encoder" if values["bit_for_bit"] else f"{np.mean(scores) - found['encoder']:+.4f}"
        _note(axes, exact, (max(scores), row), (9, -3))
    axes.axvline(found["encoder"], color=_BLACK, linewidth=1)
    _note(axes, f"encoder {found['encoder']:.4f}", (found["encoder"], len(heads) - 0.45), (-4, 0), ha="right")
    axes.set_yticks(range(len(heads)), [name for name, _ in heads])
    axes.set_ylim(-0.6, len(heads) - 0.2)
    axes.margins(x=0.25)
    axes.set_xlabel("held-out MRR@10 before the first step (a point for each seed)")
    axes.grid(visible=False, axis="y")
    return figure


def over_training(found: dict[str, Any], encoder: float) -> Figure:
    """Score above, loss below, over the same steps; bands from the worst to the best seed."""
    figure, panels = _figure(2, 1, height=6.4, sharex=True)
    for axes, what in zip(panels, ("mrr@10", "loss"), strict=True):
        for name, curves in found["curves"].items():
            _band(axes, found["steps"], curves[what], name, _STARTS[name])
        axes.set_xscale("symlog", linthresh=8, base=2)
    panels[0].axhline(encoder, color=_BLACK, linewidth=1)
    _note(panels[0], "encoder", (found["steps"][-1], encoder), (0, 4), ha="right")
    panels[0].set_ylabel("held-out MRR@10")
    panels[0].legend(loc="upper left")
    panels[1].set_ylabel("held-out loss (nats)")
    ticks = [step for step in found["steps"] if step in (0, 4, 8, 16, 32, 64, 128, 256)]
    panels[1].set_xticks(ticks, [str(step) for step in ticks])
    panels[1].minorticks_off()
    panels[1].set_xlabel("training steps (doubling from 8 on); band: worst to best seed")
    return figure


def gradient_by_depth(found: dict[str, Any]) -> Figure:
    """The raw gradient against depth, relative to one block, a panel for each activation."""
    figure, panels = _figure(1, 3, height=4.0, width=10.0, sharey=True)
    for axes, (activation, title) in zip(panels, _ACTIVATIONS.items(), strict=True):
        _by_depth(axes, found["depths"], {name: found["raw"][activation][name] for name in _WIRINGS})
        axes.set_title(title)
    panels[0].set_ylabel("gradient at the first block,\nrelative to a stack of one block")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def gradient_of_the_loss(found: dict[str, Any]) -> Figure:
    """Relu stacks: the gradient of the loss over normalised outputs, and why it goes."""
    figure, panels = _figure(1, 2, height=4.0, width=8.6)
    names = [name for name in _WIRINGS if short_name(name)]
    _by_depth(panels[0], found["depths"], {name: found["loss"]["relu"][name] for name in names})
    panels[0].set_ylabel("gradient of the contrastive loss at the first\nblock, relative to a stack of one block")
    for name in names:
        colour, line, marker = _WIRINGS[name]
        panels[1].plot(found["depths"], found["cosine"]["relu"][name], line, color=colour, marker=marker)
    _depth_axis(panels[1], found["depths"])
    panels[1].set_ylabel("mean cosine of two different texts")
    panels[1].set_ylim(0, 1.03)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, [short_name(label) for label in labels], loc="outside lower center", ncols=5)
    return figure


def shattered_gradients(found: dict[str, Any]) -> Figure:
    """The cosine of two texts' gradients against depth."""
    figure, (axes,) = _figure(1, 1, height=3.8)
    for name, values in found["cosine"].items():
        colour, line, marker = _WIRINGS[name]
        axes.plot(found["depths"], values, line, color=colour, marker=marker, label=short_name(name))
    _depth_axis(axes, found["depths"])
    axes.set_ylabel("cosine of the gradients at two texts\nthat belong together")
    axes.set_ylim(-0.03, 1.05)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def dropping_a_block(found: dict[str, Any], encoder: float) -> Figure:
    """Linear stacks left, relu stacks right: whole, then without each block; bands over the seeds."""
    figure, panels = _figure(1, 2, height=4.2, width=8.6, sharey=True)
    for name, values in found.items():
        axes = panels[int(name.endswith("relu"))]
        rows = [[whole, *without] for whole, without in zip(values["whole"], values["without"], strict=True)]
        _band(axes, range(len(rows[0])), rows, name.removesuffix(", relu"), _STACKS[name])
    blocks = len(next(iter(found.values()))["without"][0])
    for axes, title in zip(panels, ("linear", "relu"), strict=True):
        axes.set_title(title)
        axes.axhline(encoder, color=_BLACK, linewidth=1)
        _note(axes, "encoder", (blocks, encoder), (2, -13), ha="right")
        axes.set_xticks(range(blocks + 1), ["none", *map(str, range(1, blocks + 1))])
        axes.set_xlabel("block taken out")
        axes.legend(loc="lower right")
    panels[0].set_ylabel("held-out MRR@10 (band: worst to best seed)")
    panels[0].set_ylim(bottom=0)
    return figure


def valleys(found: dict[str, Any]) -> Figure:
    """The loss around the end of training; bands from the lowest to the highest direction."""
    figure, panels = _figure(1, 2, height=4.0, width=8.6, sharey=True)
    for name, rows in found["loss"].items():
        _band(
            panels[int(name.endswith("relu"))], found["distances"], rows, name.removesuffix(", relu"), _STACKS[name], marked=False
        )
    for axes, title in zip(panels, ("linear", "relu"), strict=True):
        axes.set_title(title)
        axes.set_xlabel("distance in a random direction\n(1: every row of W moved by its own length)")
        axes.set_xticks([-1.0, -0.5, 0.0, 0.5, 1.0])
        axes.legend(loc="upper center", fontsize=9)
    panels[0].set_ylabel("training loss (nats; band: all directions)")
    panels[0].set_ylim(0, 1.45 * max(np.max(rows) for rows in found["loss"].values()))
    return figure


def dial(found: dict[str, Any]) -> Figure:
    """What is won above, what is forgotten below, over the strength."""
    figure, panels = _figure(2, 1, height=6.0, sharex=True)
    strengths, heads, mean = found["strengths"], found["heads"], found["mean"]
    for axes, what in zip(panels, ("mrr@10", "forgetting"), strict=True):
        for number, values in enumerate(heads[what]):
            axes.plot(strengths, values, color=_SKY, linewidth=0.9, label=None if number else "single heads, one for each seed")
        axes.plot(strengths, mean[what], "--", color=_BLUE, marker="s", label="mean of the heads")
        axes.axvline(1.0, color="#888888", linewidth=1, linestyle=":")
    panels[1].fill_between(strengths, mean["low"], mean["high"], color=_BLUE, alpha=0.15, linewidth=0, label="its 95 % interval")
    levels = ((panels[0], found["encoder"], "encoder"), (panels[1], 0.0, "encoder"), (panels[1], DEFAULT_BUDGET, "budget"))
    for axes, level, name in levels:
        axes.axhline(level, color=_BLACK, linewidth=1)
        _note(axes, name, (strengths[-1], level), (0, 3), ha="right")
    panels[0].set_ylabel("held-out MRR@10")
    panels[1].set_ylabel("Spearman lost on the guard")
    panels[1].set_xlabel("strength s (0: the encoder, 1: the head as trained)")
    panels[0].legend(loc="center right", fontsize=9)
    panels[1].legend(loc="upper left", fontsize=9)
    return figure


def _figure(
    rows: int, columns: int, *, height: float, width: float = 7.2, sharex: bool = False, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey)
    return figure, list(axes.flat)


def _note(
    axes: Axes, text: str, at: tuple[float, float], shift: tuple[float, float], *, ha: Literal["left", "right"] = "left"
) -> None:
    axes.annotate(text, at, xytext=shift, textcoords="offset points", ha=ha, fontsize=9)


def _band(
    axes: Axes, x: Sequence[float], rows: Sequence[Sequence[float]], name: str, look: tuple[str, str, str], *, marked: bool = True
) -> None:
    """The mean of the rows as a line, and a band from the lowest to the highest."""
    colour, line, marker = look
    values = np.asarray(rows)  # (seeds, points)
    axes.plot(x, values.mean(axis=0), line, color=colour, marker=marker if marked else None, label=name)
    axes.fill_between(x, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, linewidth=0)


def _by_depth(axes: Axes, depths: Sequence[int], curves: dict[str, list[float]]) -> None:
    """Curves relative to their first point, both axes logarithmic."""
    for name, values in curves.items():
        colour, line, marker = _WIRINGS[name]
        # Curves lie on each other here: an open, large marker shows what is below it.
        below = {"markersize": 9, "markerfacecolor": "none"} if line != "-" else {}
        axes.plot(depths, np.asarray(values) / values[0], line, color=colour, marker=marker, label=name, **below)  # type: ignore[arg-type]
    axes.set_yscale("log")
    _depth_axis(axes, depths)


def _depth_axis(axes: Axes, depths: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(depths, [str(one) for one in depths])
    axes.minorticks_off()
    axes.set_xlabel("depth (blocks)")
