"""A similarity dataset that every machine already has: the docstrings of Python's own standard library.

The task is "find the function from a description of it": the anchor is the first sentence of a docstring, the positive
is the qualified name, the signature and the rest of the docstring. A general encoder is mediocre at it (names and
signatures are not prose), so fine-tuning has something to win. The demo and the benchmarks use it.

Half of the docstrings are one sentence long. Their positive is the name and the signature alone: the hard half, kept
because it is what searching an API by description is like.

Source files are parsed, never imported: importing `antigravity` opens a browser. The same Python gives the same rows
in the same order on every run; another Python version has another library and so slightly other rows.
"""

import ast
import hashlib
import inspect
import re
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

# Left out besides tests: idlelib is an application and not an interface, and distutils and lib2to3 are gone from newer
# Pythons, so that the dataset stays about the same from one version to the next.
SKIPPED_PARTS = frozenset({"test", "tests", "__pycache__", "site-packages", "idlelib", "distutils", "lib2to3"})

MIN_ANCHOR_WORDS = 4  # shorter ones ("Internal function.") describe nothing
MAX_ANCHOR_WORDS = 40  # longer ones are lists and tables without a full stop, not sentences
MAX_POSITIVE_CHARACTERS = 1000  # an encoder that reads 256 tokens sees no more
TEST_SHARE = 4  # every fourth anchor is held out

# A sentence ends at . ! or ? before white space, but not after "e.g." and "i.e." and not before a small letter.
SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\be\.g\.)(?<!\bi\.e\.)\s+(?![a-z])")
PARAGRAPH_END = re.compile(r"\n\s*\n")
NOT_A_SENTENCE = re.compile(r"[\w.]+\(|>>>|\.\. ")  # a call, a doctest, a directive
RECEIVER = re.compile(r"^(?:self|cls)(?:, /)?(?:, |$)")

Kind = Literal["function", "class", "method"]
Split = Literal["train", "test"]
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class PairRow(TypedDict):
    """One line of a dataset of kind `pairs`."""

    anchor: str
    positive: str
    split: Split


class DocumentRow(TypedDict):
    """One line of a dataset of kind `documents`; `module` and `kind` are metadata to filter by."""

    id: str
    text: str
    module: str
    kind: Kind


@dataclass(frozen=True)
class Pair:
    """A sentence and the object that it describes; `document_id` is the object's qualified name."""

    anchor: str
    positive: str
    document_id: str
    module: str
    kind: Kind

    @property
    def split(self) -> Split:
        """The side of this pair. It hangs on the anchor alone, so a pair that comes or goes moves no other."""
        digest = hashlib.sha256(self.anchor.encode()).digest()
        return "test" if int.from_bytes(digest[:8], "big") % TEST_SHARE == 0 else "train"


def docstring_pairs() -> list[Pair]:
    """All pairs of this Python's standard library, by module name and place in the file (takes 1 to 2 seconds)."""
    library = Path(sysconfig.get_path("stdlib"))
    return distinct_pairs(
        pair for path in library_files(library) for pair in module_pairs(path.read_bytes(), module_name(path, library))
    )


def pair_rows(pairs: Iterable[Pair]) -> list[PairRow]:
    """The rows of a dataset of kind `pairs`."""
    return [{"anchor": pair.anchor, "positive": pair.positive, "split": pair.split} for pair in pairs]


def document_rows(pairs: Iterable[Pair]) -> list[DocumentRow]:
    """The rows of a dataset of kind `documents`: the positives of both splits, each once."""
    return [{"id": pair.document_id, "text": pair.positive, "module": pair.module, "kind": pair.kind} for pair in pairs]


def distinct_pairs(candidates: Iterable[Pair]) -> list[Pair]:
    """The candidates that can be scored: one per object, and no anchor that describes several objects.

    A shared anchor ("Flush and close the mailbox.") is dropped everywhere: it has several right answers, of which the
    dataset would name one.
    """
    by_object: dict[str, Pair] = {}
    for pair in candidates:
        by_object.setdefault(pair.document_id, pair)  # a second definition is another platform's branch
    uses = Counter(_words(pair.anchor) for pair in by_object.values())
    return [pair for pair in by_object.values() if uses[_words(pair.anchor)] == 1]


def module_pairs(source: bytes, module: str) -> Iterator[Pair]:
    """The pairs of one module's source, in the order of the file; anchors may still repeat."""
    with warnings.catch_warnings():
        # A file may hold an invalid escape, which is a warning at parse time and none of our business.
        warnings.simplefilter("ignore")
        tree = ast.parse(source)
    for name, kind, node in _public_definitions(tree, module, in_class=False):
        docstring = ast.get_docstring(node, clean=False)
        if docstring is None:
            continue
        anchor, rest = split_docstring(docstring)
        positive = f"{_signature(node, name)}\n{rest}".strip()
        if _is_sentence(anchor) and _words(anchor) not in _words(positive):
            yield Pair(anchor, _shorten(positive), document_id=name, module=module, kind=kind)


def split_docstring(docstring: str) -> tuple[str, str]:
    """The first sentence of a docstring and all the rest, white space collapsed; ("", ...) when it has no sentence.

    A docstring may open with a call such as "pop(k[, d]) -> v". That names the object, so it stays in the rest.
    """
    sentences = [
        sentence
        for paragraph in PARAGRAPH_END.split(inspect.cleandoc(docstring))
        for sentence in SENTENCE_END.split(" ".join(paragraph.split()))
        if sentence
    ]
    for place, sentence in enumerate(sentences):
        if not NOT_A_SENTENCE.match(sentence):
            return sentence, " ".join(sentences[:place] + sentences[place + 1 :])
    return "", " ".join(sentences)


def library_files(library: Path) -> list[Path]:
    """The source files of the public standard library, sorted: no tests, no private modules, nothing installed."""
    found = []
    for name in sorted(sys.stdlib_module_names):
        found += [library / f"{name}.py", *sorted((library / name).rglob("*.py"))]
    return [path for path in found if path.is_file() and _is_public(path.relative_to(library))]


def module_name(path: Path, library: Path) -> str:
    """The dotted name under which `path` is imported."""
    parts = path.relative_to(library).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _is_public(relative: Path) -> bool:
    *folders, file = relative.with_suffix("").parts
    names = folders if file == "__init__" else [*folders, file]
    return not any(name.startswith("_") or name in SKIPPED_PARTS for name in names)


def _public_definitions(node: ast.AST, prefix: str, *, in_class: bool) -> Iterator[tuple[str, Kind, Definition]]:
    """(qualified name, kind, node) of everything below `node` that a user of the module can reach by name."""
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.ClassDef(name=name) if not name.startswith("_"):
                yield f"{prefix}.{name}", "class", child
                yield from _public_definitions(child, f"{prefix}.{name}", in_class=True)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) if not name.startswith("_"):
                if not _is_overload(child):
                    yield f"{prefix}.{name}", "method" if in_class else "function", child
            case ast.If() | ast.Try() | ast.ExceptHandler() | ast.With():
                yield from _public_definitions(child, prefix, in_class=in_class)


def _is_overload(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(ast.unparse(decorator).split(".")[-1] == "overload" for decorator in node.decorator_list)


def _signature(node: Definition, name: str) -> str:
    """The definition as a caller writes it: no receiver; a class with the parameters of its own constructor."""
    if isinstance(node, ast.ClassDef):
        constructors = [child for child in node.body if isinstance(child, ast.FunctionDef) and child.name == "__init__"]
        return f"class {name}({_parameters(constructors[-1])})" if constructors else f"class {name}"
    asynchronous = "async " if isinstance(node, ast.AsyncFunctionDef) else ""
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{asynchronous}{name}({_parameters(node)}){result}"


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    return RECEIVER.sub("", ast.unparse(node.args))


def _is_sentence(anchor: str) -> bool:
    return MIN_ANCHOR_WORDS <= len(anchor.split()) <= MAX_ANCHOR_WORDS


def _words(text: str) -> str:
    """`text` as it is compared: case, spacing and the final punctuation make no difference."""
    return " ".join(text.casefold().split()).rstrip(".!?:;")


def _shorten(text: str) -> str:
    if len(text) <= MAX_POSITIVE_CHARACTERS:
        return text
    return text[: MAX_POSITIVE_CHARACTERS + 1].rsplit(maxsplit=1)[0]
