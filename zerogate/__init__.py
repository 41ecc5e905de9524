"""Zerogate's machine learning: encoder, cache, heads, search, fit, evaluation and guard. Useful alone, with no service running.

Names are loaded when they are first used: sentence-transformers takes 6 s and 500 MB to import and torch 1.5 s, and nothing
pays for what it does not use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zerogate.cache import CachedEncoder as CachedEncoder
    from zerogate.cache import EmbeddingCache as EmbeddingCache
    from zerogate.encoder import Encoder as Encoder
    from zerogate.evaluation import evaluate as evaluate
    from zerogate.fitting import fit as fit
    from zerogate.folded import FoldedHead as FoldedHead
    from zerogate.guard import builtin_guard as builtin_guard
    from zerogate.guard import make_guard as make_guard
    from zerogate.head_files import dump_head as dump_head
    from zerogate.head_files import load_head as load_head
    from zerogate.head_shapes import HeadShape as HeadShape
    from zerogate.heads import SkipHead as SkipHead
    from zerogate.heads import make_head as make_head
    from zerogate.lazy_encoder import LazyEncoder as LazyEncoder
    from zerogate.learning import assess as assess
    from zerogate.learning import learn as learn
    from zerogate.plan import Way as Way
    from zerogate.readers import read_rows as read_rows
    from zerogate.recipe import Recipe as Recipe
    from zerogate.stacked import StackedHead as StackedHead
    from zerogate.task_parts import Rows as Rows
    from zerogate.tasks import make_task as make_task
    from zerogate.tuning import tune_encoder as tune_encoder
    from zerogate.tuning_recipe import TuningExamples as TuningExamples
    from zerogate.tuning_recipe import TuningRecipe as TuningRecipe
    from zerogate.vectors import Vectors as Vectors
    from zerogate.verdict import judge as judge

_HOME = {
    "CachedEncoder": "zerogate.cache",
    "EmbeddingCache": "zerogate.cache",
    "Encoder": "zerogate.encoder",
    "FoldedHead": "zerogate.folded",
    "HeadShape": "zerogate.head_shapes",
    "LazyEncoder": "zerogate.lazy_encoder",
    "Recipe": "zerogate.recipe",
    "Rows": "zerogate.task_parts",
    "SkipHead": "zerogate.heads",
    "StackedHead": "zerogate.stacked",
    "TuningExamples": "zerogate.tuning_recipe",
    "TuningRecipe": "zerogate.tuning_recipe",
    "Vectors": "zerogate.vectors",
    "Way": "zerogate.plan",
    "assess": "zerogate.learning",
    "builtin_guard": "zerogate.guard",
    "dump_head": "zerogate.head_files",
    "evaluate": "zerogate.evaluation",
    "fit": "zerogate.fitting",
    "judge": "zerogate.verdict",
    "learn": "zerogate.learning",
    "load_head": "zerogate.head_files",
    "make_guard": "zerogate.guard",
    "make_head": "zerogate.heads",
    "make_task": "zerogate.tasks",
    "read_rows": "zerogate.readers",
    "tune_encoder": "zerogate.tuning",
}
__all__ = sorted(_HOME)  # noqa: PLE0605 (a list of strings, computed from the one table)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'zerogate' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME[name]), name)
