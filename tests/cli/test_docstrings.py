import json
import os
import string
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from cli.docstrings import (
    MAX_POSITIVE_CHARACTERS,
    Pair,
    distinct_pairs,
    docstring_pairs,
    document_rows,
    library_files,
    module_pairs,
    pair_rows,
    split_docstring,
)

ZOO = b'''
"""A module docstring is nobody's pair."""
from typing import overload
@overload
def feed(animal: int) -> int:
    """This overload is not the function itself."""
@overload
def feed(animal: str) -> str: ...
def feed(animal, /, food="hay", *portions: int, times=2, **extra) -> str | None:
    """Give one animal something to eat.

    Returns what is left,
    e.g. straw.  May raise.
    """
async def wake(self_timer, *, loudly: bool = False):
    """Ring the bell until everybody is up."""
def _hidden():
    """Nobody outside of this module sees this."""
def undocumented(a, b): ...
def short():
    """Internal function."""
def leaky():
    """Open the gate slowly.

    To open the gate slowly, call this.
    """
def usage(names):
    """usage(names) -> list.  List the names of all cages.

    >>> usage([])
    []
    """
class Cage(dict, metaclass=type):
    """A box with bars for one animal. It locks itself."""
    def __init__(self, size: float, *, colour="grey"):
        """Create a cage of the given size."""
    @property
    def door(self) -> str:
        """The side on which the door is."""
    @door.setter
    def door(self, side):
        """Move the door to another side."""
    @staticmethod
    def weigh(animal, scale=1.0):
        """Weigh an animal without opening the door."""
    @classmethod
    def borrow(cls, owner):
        """Borrow a cage from another zoo."""
    class Lock:
        """What keeps a cage closed at night."""
        def turn(self, key, /):
            """Turn the key once to the right."""
class _Private:
    """Neither this class nor its methods count."""
    def method(self):
        """This method of a private class is unreachable."""
try:
    import winzoo
except ImportError:
    def fallback(path):
        """Count the animals without the fast module."""
if True:
    def conditional():
        """Count the animals on this platform only."""
def outer():
    def inner():
        """A function in a function has no name outside."""
'''

FEED = "zoo.feed(animal, /, food='hay', *portions: int, times=2, **extra) -> str | None"
EXPECTED = [
    ("Give one animal something to eat.", f"{FEED}\nReturns what is left, e.g. straw. May raise.", "function"),
    ("Ring the bell until everybody is up.", "async zoo.wake(self_timer, *, loudly: bool=False)", "function"),
    ("List the names of all cages.", "zoo.usage(names)\nusage(names) -> list. >>> usage([]) []", "function"),
    ("A box with bars for one animal.", "class zoo.Cage(size: float, *, colour='grey')\nIt locks itself.", "class"),
    ("The side on which the door is.", "zoo.Cage.door() -> str", "method"),
    ("Weigh an animal without opening the door.", "zoo.Cage.weigh(animal, scale=1.0)", "method"),
    ("Borrow a cage from another zoo.", "zoo.Cage.borrow(owner)", "method"),
    ("What keeps a cage closed at night.", "class zoo.Cage.Lock", "class"),
    ("Turn the key once to the right.", "zoo.Cage.Lock.turn(key, /)", "method"),
    ("Count the animals without the fast module.", "zoo.fallback(path)", "function"),
    ("Count the animals on this platform only.", "zoo.conditional()", "function"),
]
EXPECTED_NAMES = "feed wake usage Cage Cage.door Cage.weigh Cage.borrow Cage.Lock Cage.Lock.turn fallback conditional"


@pytest.fixture(scope="module")
def library() -> list[Pair]:
    return docstring_pairs()


def test_a_module_gives_exactly_its_public_documented_objects() -> None:
    pairs = distinct_pairs(module_pairs(ZOO, "zoo"))

    assert [(pair.anchor, pair.positive, pair.kind) for pair in pairs] == EXPECTED
    assert [pair.document_id for pair in pairs] == [f"zoo.{name}" for name in EXPECTED_NAMES.split()]
    assert {pair.module for pair in pairs} == {"zoo"}


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("One sentence.", ("One sentence.", "")),
        ("No full stop\n\nand a rest", ("No full stop", "and a rest")),
        ("Over\n    two lines.  Then more!", ("Over two lines.", "Then more!")),
        ("Takes codecs, e.g. utf-8, i.e. Unicode. Rest.", ("Takes codecs, e.g. utf-8, i.e. Unicode.", "Rest.")),
        ("Calls iterator.next() on it. Rest.", ("Calls iterator.next() on it.", "Rest.")),
        ("f(x) -> y\n\nThe value of x.\n\nMore.", ("The value of x.", "f(x) -> y More.")),
        ("d.copy() -> a shallow copy", ("", "d.copy() -> a shallow copy")),
        (">>> f(1)\n1", ("", ">>> f(1) 1")),
        ("", ("", "")),
    ],
)
def test_a_docstring_is_split_after_its_first_sentence(docstring: str, expected: tuple[str, str]) -> None:
    assert split_docstring(docstring) == expected


def test_an_anchor_that_several_objects_share_is_dropped_everywhere() -> None:
    anchors = {"one": "Close the file and go home.", "two": "close the file  and go home", "three": "Close the door at night."}
    source = "".join(f'def {name}(): """{anchor}"""\n' for name, anchor in anchors.items()).encode()
    assert [pair.document_id for pair in distinct_pairs(module_pairs(source, "m"))] == ["m.three"]


def test_the_first_of_two_definitions_of_a_name_stands() -> None:
    source = b'''
if windows:
    def path(): """Where the files of Windows are."""
else:
    def path(): """Where the files of Unix are."""
'''
    assert [pair.anchor for pair in distinct_pairs(module_pairs(source, "m"))] == ["Where the files of Windows are."]


def test_a_long_positive_ends_on_a_word_boundary() -> None:
    words = [f"Word{i:03}" for i in range(500)]
    source = f'def f():\n    """A sentence of five words. {" ".join(words)}"""'.encode()

    (pair,) = module_pairs(source, "m")

    kept = pair.positive.split("\n")[1].split()
    assert MAX_POSITIVE_CHARACTERS - len(" Word999") <= len(pair.positive) <= MAX_POSITIVE_CHARACTERS
    assert kept == words[: len(kept)]


def test_a_warning_of_the_parser_is_kept_from_the_caller() -> None:
    source = b'def f():\n    """A path like C:\\d in it."""\n'
    with pytest.warns(Warning, match="invalid escape"):
        compile(source, "m", "exec")

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        pairs = list(module_pairs(source, "m"))

    assert len(pairs) == 1
    assert seen == []


def test_only_public_library_files_are_read(tmp_path: Path) -> None:
    public = ["json/__init__.py", "json/decoder.py", "queue.py"]
    left_out = ["json/__main__.py", "json/_speedups.py", "json/tests/test_all.py", "json/__pycache__/decoder.py"]
    left_out += ["idlelib/run.py", "_threading_local.py", "test/support.py", "not_of_the_library.py"]
    left_out += ["site-packages/queue.py", "site-packages/json/decoder.py"]
    for name in public + left_out:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    assert {path.relative_to(tmp_path).as_posix() for path in library_files(tmp_path)} == set(public)


def test_the_library_gives_a_few_thousand_distinct_pairs(library: list[Pair]) -> None:
    assert 3_000 <= len(library) <= 5_500  # 3,952 with CPython 3.11.7; distributions leave out tkinter
    assert len({pair.anchor for pair in library}) == len(library)
    assert len({pair.document_id for pair in library}) == len(library)
    assert len({pair.positive for pair in library}) == len(library)


def test_every_pair_of_the_library_is_a_real_question(library: list[Pair]) -> None:
    for pair in library:
        assert len(pair.anchor.split()) >= 4, pair
        assert pair.anchor.casefold().rstrip(".") not in " ".join(pair.positive.casefold().split()), pair
        assert pair.document_id in pair.positive, pair
        assert pair.document_id.startswith(f"{pair.module}."), pair
        assert len(pair.positive) <= MAX_POSITIVE_CHARACTERS, pair


def test_every_pair_comes_from_a_public_module_of_the_library(library: list[Pair]) -> None:
    for pair in library:
        parts = pair.document_id.split(".")
        assert parts[0] in sys.stdlib_module_names
        assert not any(part.startswith("_") for part in parts)
        assert not {"test", "tests", "idlelib", "lib2to3", "site-packages"} & set(parts[:-1])


def test_known_functions_are_among_the_pairs(library: list[Pair]) -> None:
    by_id = {pair.document_id: pair for pair in library}
    assert by_id["shlex.quote"].anchor == "Return a shell-escaped version of the string *s*."
    assert by_id["shlex.quote"].positive == "shlex.quote(s)"
    assert by_id["json.decoder.JSONDecoder.raw_decode"].kind == "method"
    assert by_id["pathlib.PosixPath"].kind == "class"


def test_a_quarter_of_the_anchors_is_held_out(library: list[Pair]) -> None:
    held_out = sum(pair.split == "test" for pair in library) / len(library)
    assert 0.22 <= held_out <= 0.28


def test_the_split_of_an_anchor_never_changes() -> None:
    # Written down once: a change here makes all published numbers incomparable.
    held_out = [letter for letter in string.ascii_letters if Pair(letter, "", "", "", "function").split == "test"]
    assert "".join(held_out) == "lvwxyBGIJQTU"


def test_another_process_gives_the_same_rows_and_imports_nothing(library: list[Pair]) -> None:
    program = (
        "import json, sys; from cli.docstrings import docstring_pairs, document_rows, pair_rows; "
        "pairs = docstring_pairs(); print(json.dumps([pair_rows(pairs), document_rows(pairs), 'turtle' in sys.modules]))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1234"}
    answer = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
    assert json.loads(answer.stdout) == [pair_rows(library), document_rows(library), False]


def test_rows_have_the_columns_of_their_dataset_kind() -> None:
    pair = Pair("What keeps a cage closed.", "class zoo.Lock", "zoo.Lock", "zoo", "class")
    assert pair_rows([pair]) == [{"anchor": pair.anchor, "positive": pair.positive, "split": pair.split}]
    assert document_rows([pair]) == [{"id": "zoo.Lock", "text": "class zoo.Lock", "module": "zoo", "kind": "class"}]
