"""Zerogate's machine learning: encoder, cache, zero-gated skip heads, fit and evaluation. Useful alone, with no service running.

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
    from zerogate.heads import SkipHead as SkipHead
    from zerogate.recipe import Recipe as Recipe
    from zerogate.verdict import judge as judge

_HOME = {
    "CachedEncoder": "zerogate.cache",
    "EmbeddingCache": "zerogate.cache",
    "Encoder": "zerogate.encoder",
    "FoldedHead": "zerogate.folded",
    "Recipe": "zerogate.recipe",
    "SkipHead": "zerogate.heads",
    "evaluate": "zerogate.evaluation",
    "fit": "zerogate.fitting",
    "judge": "zerogate.verdict",
}
__all__ = sorted(_HOME)  # noqa: PLE0605 (a list of strings, computed from the one table)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'zerogate' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME[name]), name)
