"""Datasets of the learning benchmark: folders with files in DESIGN.md's kinds, or the standard library's docstrings."""

from collections.abc import Iterator
from pathlib import Path

from cli.docstrings import docstring_pairs, pair_rows
from zerogate.examples import Kind, Row
from zerogate.readers import Format, read_rows
from zerogate.task_parts import Rows

# Where a folder holds several kinds of one dataset, the first of these is taken.
_ORDER: tuple[Kind, ...] = ("queries", "triplets", "pairs", "groups", "scored")
_FORMATS: dict[str, Format] = {".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet"}
STSB = "stsb"


def datasets(folder: Path | None) -> Iterator[tuple[str, Rows]]:
    """Every dataset below the folder by its name; without a folder the docstrings."""
    if folder is None:
        yield "docstrings", Rows("pairs", [dict(row) for row in pair_rows(docstring_pairs())])
        return
    for one in sorted(path for path in folder.iterdir() if path.is_dir()):
        found = read_folder(one)
        if found is not None:
            yield one.name, found


def read_folder(folder: Path) -> Rows | None:
    """The dataset in a folder, `pairs.jsonl`, `groups.csv`, ...; None where there is none."""
    for kind in _ORDER:
        file = _file(folder, kind)
        documents = _file(folder, "documents")
        if file is None or (kind == "queries" and documents is None):
            continue
        texts: dict[str, str] = {}
        if kind == "queries" and documents is not None:
            texts = {row["id"]: row["text"] for row in _read(documents, "documents")}
        return Rows(kind, _read(file, kind), texts)
    return None


def _file(folder: Path, kind: Kind) -> Path | None:
    return next((path for suffix in _FORMATS if (path := folder / f"{kind}{suffix}").is_file()), None)


def _read(file: Path, kind: Kind) -> list[Row]:
    return list(read_rows(file, format=_FORMATS[file.suffix], kind=kind))
