"""What a training has finished so far, in a folder: one that was killed finds it again when it is started anew.

A record is one safetensors file; its header also holds JSON facts and a checksum. It is named after the digest of everything
that decides its content, so a record of anything else is never found, and one that is damaged counts as none. Files appear whole
by rename; a name that begins with '.' is half-made. Needs numpy only.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

_FORMAT: Final = 1
# Records wait in memory for so long: a short training writes nothing at all, and a killed one loses no more than that. Where
# writing is slow it may take a tenth of the time, not more.
_SECONDS: Final = 15.0
_WRITING_SHARE: Final = 0.1


@dataclass(frozen=True)
class Record:
    """Arrays by name, and JSON facts."""

    arrays: dict[str, NDArray[Any]]
    facts: dict[str, Any]


class Records:
    """The records of one training. For one thread; several processes may share a folder."""

    def __init__(self, folder: Path, *, computer: Mapping[str, Any]) -> None:
        """folder: made where it is missing; whoever chose it removes it. computer: what of the machine decides the last bits."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._computer = dict(computer)
        self._waiting: dict[str, Record] = {}
        self._written = time.monotonic()
        self._writing = 0.0

    def name(self, kind: str, *parts: object) -> str:
        """The name of the record of this kind that the parts decide: arrays, plain values, and dataclasses and lists of them."""
        digest = hashlib.sha256()
        _feed(digest, [_FORMAT, self._computer, *parts])
        return f"{kind}-{digest.hexdigest()}"

    def find(self, name: str) -> Record | None:
        """The record, if it stands in the folder and is whole."""
        path = self._path(name)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="np") as file:
                header = file.metadata()
                arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no mapping)
            if header["checksum"] == _checksum(name, header["facts"], arrays):
                return Record(arrays, json.loads(header["facts"]))
        except (OSError, SafetensorError, LookupError, TypeError, ValueError):
            pass  # damaged
        return None

    def keep(self, name: str, record: Record) -> None:
        """Keep a record, in place of an older one of the same name. It is written when the next writing is due."""
        self._waiting[name] = record
        if self.is_due():
            self.write()

    def is_due(self) -> bool:
        """Whether the last writing was long enough ago."""
        return time.monotonic() - self._written > max(_SECONDS, self._writing / _WRITING_SHARE)

    def write(self) -> None:
        """Write all that waits, now."""
        began = time.monotonic()
        for name, record in self._waiting.items():
            facts = json.dumps(record.facts)
            header = {"facts": facts, "checksum": _checksum(name, facts, record.arrays)}
            self._replace(name, save(record.arrays, metadata=header))
        self._waiting.clear()
        self._written = time.monotonic()
        self._writing = self._written - began

    def _replace(self, name: str, content: bytes) -> None:
        half_made = self._folder / f".half-{uuid4().hex}"
        try:
            with half_made.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            half_made.replace(self._path(name))
        except OSError:  # a full disk: the training goes on, there is only less to find again
            half_made.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"


def _checksum(name: str, facts: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    _feed(digest, [name, facts, dict(arrays)])
    return digest.hexdigest()


def _feed(digest: Any, value: object) -> None:
    """Add a value to a digest, with its type and length, so that no two values feed the same bytes."""
    if isinstance(value, np.ndarray):
        digest.update(f"array {value.dtype.str} {value.shape};".encode())
        if value.size:  # the buffer of an empty one cannot be had
            digest.update(np.ascontiguousarray(value).data)
    elif isinstance(value, Mapping):
        _feed(digest, [part for key in sorted(value) for part in (key, value[key])])
    elif isinstance(value, list | tuple):
        digest.update(f"list {len(value)};".encode())
        for part in value:
            _feed(digest, part)
    elif is_dataclass(value) and not isinstance(value, type):
        _feed(digest, [type(value).__name__, *(getattr(value, one.name) for one in fields(value))])
    elif value is None or isinstance(value, str | int | float):
        text = repr(value).encode()
        digest.update(f"{type(value).__name__} {len(text)};".encode() + text)
    else:
        raise TypeError(f"a record is named after arrays, plain values, dataclasses and lists of them; found {type(value)}")
