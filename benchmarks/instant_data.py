"""Three datasets of queries and documents that every installation has: docstrings, of the library and of packages it needs.

library: a sentence finds the function that it describes (cli/docstrings.py). torch: the same for PyTorch. names: the name of a
function or class of SciPy and scikit-learn, as words, finds its description. Sources are parsed, never imported.
"""

import hashlib
import importlib.util
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from cli.docstrings import Pair, distinct_pairs, docstring_pairs, module_name, module_pairs
from zerogate.task_parts import Rows

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_OVERSIZE = 2  # candidates are read for each pair that is kept: some are no sentence of their own


def datasets(pairs: int) -> dict[str, Rows]:
    """At most so many pairs of each dataset, by its name; the same installation gives the same."""
    return {
        "library": rows(first_by_digest(docstring_pairs(), pairs), by_sentence),
        "torch": rows(package_pairs(("torch",), pairs), by_sentence),
        "names": rows(package_pairs(("scipy", "sklearn"), pairs), by_name),
    }


def rows(pairs: Sequence[Pair], cut: Callable[[Pair], tuple[str, str]]) -> Rows:
    """A dataset of kind pairs; cut: gives the anchor and the positive."""
    cuts = [cut(pair) for pair in pairs]
    return Rows("pairs", [{"anchor": anchor, "positive": positive} for anchor, positive in cuts])


def by_sentence(pair: Pair) -> tuple[str, str]:
    """The first sentence, and signature with the rest."""
    return pair.anchor, pair.positive


def by_name(pair: Pair) -> tuple[str, str]:
    """The name as words, and the description without name and signature."""
    _, _, rest = pair.positive.partition("\n")
    return words(pair.document_id), f"{pair.anchor} {rest}".strip()


def words(name: str) -> str:
    """`scipy.stats.KstestResult` as "scipy stats kstest result"."""
    return " ".join(_WORD.findall(name)).lower()


def package_pairs(packages: Sequence[str], count: int) -> list[Pair]:
    """At most so many pairs of the packages' sources, from files in the order of their names' digests: from everywhere."""
    folders = [_folder(package) for package in packages]
    files = [(file, folder.parent) for folder in folders for file in folder.rglob("*.py") if _is_no_test(file, folder)]
    files.sort(key=lambda one: _digest(str(one[0].relative_to(one[1]))))
    candidates = _pairs_of(files)
    return first_by_digest(distinct_pairs(islice(candidates, _OVERSIZE * count)), count)


def first_by_digest(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """So many of the pairs, chosen by the digests of their anchors."""
    return sorted(pairs, key=lambda pair: _digest(pair.anchor))[:count]


def _pairs_of(files: Sequence[tuple[Path, Path]]) -> Iterator[Pair]:
    for file, root in files:
        yield from module_pairs(file.read_bytes(), module_name(file, root))


def _folder(package: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or found.submodule_search_locations is None:
        raise SystemExit(f"the package {package} is not installed")
    return Path(next(iter(found.submodule_search_locations)))


def _is_no_test(file: Path, folder: Path) -> bool:
    parts = file.relative_to(folder).with_suffix("").parts
    return not {"test", "tests", "testing"} & set(parts)


def _digest(text: str) -> bytes:
    return hashlib.sha256(f"instant:{text}".encode()).digest()  # salted: the digest of the plain text decides on the split
