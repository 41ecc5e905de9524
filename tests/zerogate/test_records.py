"""Records: whole or not there, found by exactly what they were made of, and never a reason to fail."""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zerogate import records as records_module
from zerogate.records import Record, Records

COMPUTER = {"threads": 2}
SOME = Record(
    {
        "matrix": np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32),
        "state": np.arange(7, dtype=np.uint8),
        "total": np.asarray(0.1, dtype=np.float32),
        "scores": np.asarray([0.1, 1 / 3]),
        "yes": np.asarray([True, False]),
    },
    {"step": 3, "losses": [0.1, 1 / 3, float("nan")], "names": ["a", "b"]},
)


@dataclass(frozen=True)
class Pair:
    one: Any
    other: Any


def written(folder: Path, record: Record = SOME, *, name: str = "fit-1") -> Path:
    records = Records(folder, computer=COMPUTER)
    records.keep(name, record)
    records.write()
    return folder / f"{name}.safetensors"


def found(folder: Path, name: str = "fit-1") -> Record | None:
    return Records(folder, computer=COMPUTER).find(name)


def contents(record: Record) -> tuple[Any, ...]:
    return {name: (one.dtype, one.shape, one.tobytes()) for name, one in record.arrays.items()}, repr(record.facts)


def test_a_record_comes_back_to_the_bit(tmp_path: Path) -> None:
    written(tmp_path)

    again = found(tmp_path)

    assert again is not None
    assert contents(again) == contents(SOME)
    assert found(tmp_path, "fit-2") is None


def test_a_newer_record_of_the_name_takes_the_place_of_the_older(tmp_path: Path) -> None:
    written(tmp_path)
    written(tmp_path, Record({"total": np.asarray(2.0)}, {}))

    again = found(tmp_path)

    assert again is not None
    assert again.arrays["total"] == 2.0
    assert [path.name for path in tmp_path.iterdir()] == ["fit-1.safetensors"]


def test_nothing_is_written_before_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(records_module.time, "monotonic", lambda: now)
    records = Records(tmp_path, computer=COMPUTER)

    records.keep("fit-1", SOME)
    now += 14.9
    records.keep("fit-2", SOME)
    assert list(tmp_path.iterdir()) == []

    now += 0.2
    assert records.is_due()
    records.keep("fit-3", SOME)
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["fit-1", "fit-2", "fit-3"]
    assert not records.is_due()


def test_slow_writing_takes_a_tenth_of_the_time_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0

    def slow(descriptor: int) -> None:
        nonlocal now
        now += 4.0

    monkeypatch.setattr(records_module.time, "monotonic", lambda: now)
    monkeypatch.setattr(os, "fsync", slow)
    records = Records(tmp_path, computer=COMPUTER)
    records.keep("fit-1", SOME)
    records.write()

    now += 39.9
    assert not records.is_due()
    now += 0.2
    assert records.is_due()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut short": lambda content: content[:-1],
    "only a header": lambda content: content[:60],
    "longer": lambda content: content + b"\0",
    "other bytes": lambda content: b"\xff" * len(content),
    "no tensors file": lambda content: b"{}",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_none(tmp_path: Path, damage: str) -> None:
    path = written(tmp_path)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))

    assert found(tmp_path) is None


def test_whichever_bit_flips_the_record_is_none_or_says_the_same(tmp_path: Path) -> None:
    path = written(tmp_path)
    content = path.read_bytes()
    refused = 0

    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        again = found(tmp_path)
        refused += again is None
        assert again is None or contents(again) == contents(SOME)

    assert refused > 0.9 * len(content)


def test_a_record_under_the_name_of_another_is_none(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.rename(tmp_path / "fit-2.safetensors")

    assert found(tmp_path, "fit-2") is None


def test_a_file_of_somebody_else_is_none(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"matrix": np.zeros(3)}, tmp_path / "fit-1.safetensors")

    assert found(tmp_path) is None


def test_a_full_disk_leaves_less_to_find_and_nothing_half_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    written(tmp_path)
    monkeypatch.setattr(os, "fsync", full)

    written(tmp_path, Record({"total": np.asarray(2.0)}, {}))

    again = found(tmp_path)
    assert again is not None
    assert contents(again) == contents(SOME)
    assert len(list(tmp_path.iterdir())) == 1


def test_the_name_tells_everything_apart_that_differs(tmp_path: Path) -> None:
    records = Records(tmp_path, computer=COMPUTER)
    numbers = np.arange(6, dtype=np.int64)
    parts: list[tuple[object, ...]] = [
        (),
        ([],),
        ([], []),
        (None,),
        (0,),
        (0.0,),
        (False,),
        ("0",),
        ("",),
        ("ab", "c"),
        ("a", "bc"),
        (["a"], "b"),
        (["a", "b"],),
        (numbers,),
        (numbers.reshape(2, 3),),
        (numbers.reshape(3, 2),),
        (numbers.astype(np.int32),),
        (numbers[::-1],),
        (numbers[:0],),
        (Pair(1, 2),),
        (Pair(2, 1),),
        ({"one": 1, "other": 2},),
        (1e-300,),
        (2e-300,),
    ]

    names = [records.name("fit", *one) for one in parts]

    assert len(set(names)) == len(parts)
    assert names == [Records(tmp_path, computer=COMPUTER).name("fit", *one) for one in parts]
    assert set(names).isdisjoint(records.name("point", *one) for one in parts)
    assert set(names).isdisjoint(Records(tmp_path, computer={"threads": 3}).name("fit", *one) for one in parts)


def test_what_has_no_digest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="found <class 'set'>"):
        Records(tmp_path, computer=COMPUTER).name("fit", {1, 2})
