"""When the entries of the embedding cache were last used: a table that all processes of a machine share through a mapped file.

To note a use costs a store into memory, no transaction. Nothing here must be right: after a crash, or where too many keys meet
in one place, an entry is forgotten earlier than it should be, and no more than that.
"""

import mmap
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

KEY_BYTES = 32

_KEY = np.dtype([("bucket", "<u8"), ("tag", "<u2"), ("rest", f"V{KEY_BYTES - 10}")])
# hand: the key where the next search for what to forget begins. fresh: entries stored since the tick began.
_HEADER = np.dtype([("slots", "<u8"), ("fresh", "<u8"), ("tick", "<u8"), ("hand", "u1", KEY_BYTES), ("free", "u1", 8)])
# A slot is the low half of a key's tick of last use above 16 bits of the key. A key may stand in any of the slots of one bucket,
# where it takes the place of the key that was not used for longest.
_SLOT_BYTES = 4
_BUCKET = 4
_FIRST_SLOTS = 2**13
_UNKNOWN = 2**16 - 1
# Time is counted in entries stored: one tick is this part of what the cache holds. So a use is written down rarely, a cache
# that is only read writes nothing, and the order of use is still known to 2 %.
_TICKS_PER_TURNOVER = 64


class Recency:
    """The last use of entries by key. `stored`, and setting the hand, need the lock of the cache's writer."""

    def __init__(self, path: Path, *, most_entries: int) -> None:
        """Open or make the table. most_entries: of the cache. Its file takes 4 to 8 bytes for each of them at most."""
        self._path = path
        self._most_slots = _most_slots(most_entries)
        size = table_bytes(most_entries)
        try:
            path.touch()
            with path.open("r+b") as file:
                if path.stat().st_size < size:
                    # A mapped page that the disk has no room for kills the process: what is used is written out first.
                    file.write(bytes(_HEADER.itemsize + _SLOT_BYTES * min(_FIRST_SLOTS, self._most_slots)))
                    file.truncate(size)
                mapped = mmap.mmap(file.fileno(), size)
        except OSError:  # no room on the disk: this process knows its own uses only
            mapped = mmap.mmap(-1, size)
        self._header = np.frombuffer(mapped, dtype=_HEADER, count=1)
        self._table = np.frombuffer(mapped, dtype="<u4", offset=_HEADER.itemsize).reshape(-1, _BUCKET)

    @property
    def hand(self) -> bytes:
        """The key from which on the next entries to forget are looked for."""
        return self._header["hand"][0].tobytes()  # type: ignore[no-any-return]

    @hand.setter
    def hand(self, key: bytes) -> None:
        self._header["hand"][0] = np.frombuffer(key, dtype="u1")

    def used(self, keys: Sequence[bytes]) -> None:
        """Note that the entries were used now."""
        for _ in range(_BUCKET):  # new keys of one bucket take the same slot: those that lost it look for the next
            buckets, slots, tags = self._look(keys)
            ages = self._now() - _ticks(slots)
            ages[_tags(slots) == tags[:, None]] = _UNKNOWN  # its own slot, or else the one that was not used for longest
            places = ages.argmax(axis=1)
            marks = np.uint32(self._now()) << np.uint32(16) | tags
            stale = np.flatnonzero(slots[np.arange(len(keys)), places] != marks)
            if not stale.size:  # the page stays clean
                return
            self._table[buckets[stale], places[stale]] = marks[stale]
            keys = [keys[place] for place in stale.tolist()]

    def ages(self, keys: Sequence[bytes]) -> NDArray[np.uint16]:
        """(n,): for how many ticks each entry was not used; the largest number where nothing is known of it."""
        _, slots, tags = self._look(keys)
        ages = self._now() - _ticks(slots)
        ages[_tags(slots) != tags[:, None]] = _UNKNOWN
        return ages.min(axis=1)  # type: ignore[no-any-return]

    def stored(self, keys: Sequence[bytes], *, entries: int) -> None:
        """Note that the keys were stored now; entries: how many the cache holds. Time goes on, and the table grows with them."""
        header = self._header[0]
        ticks, fresh = divmod(int(header["fresh"]) + len(keys), max(1, entries // _TICKS_PER_TURNOVER))
        header["tick"] += np.uint64(ticks)
        header["fresh"] = fresh
        while 2 * entries > self._slots() < self._most_slots and self._double():
            pass
        self.used(keys)

    def _double(self) -> bool:
        """Use twice the slots; what was known of a key is known in its new bucket. False where the disk has no room."""
        slots = self._slots()
        with suppress(OSError), self._path.open("r+b") as file:
            file.seek(_HEADER.itemsize + _SLOT_BYTES * slots)
            file.write(self._table[: slots // _BUCKET].tobytes())
            file.flush()
            self._header["slots"] = 2 * slots
            return True
        return False

    def _look(self, keys: Sequence[bytes]) -> tuple[NDArray[np.intp], NDArray[np.uint32], NDArray[np.uint32]]:
        """Of every key: its bucket, (n,), what is in the bucket's slots, (n, 4), and the key's tag, (n,)."""
        parts = np.frombuffer(b"".join(keys), dtype=_KEY)
        buckets = (parts["bucket"] % np.uint64(self._slots() // _BUCKET)).astype(np.intp)
        # 0 stands in slots that were never used.
        return buckets, self._table[buckets], np.maximum(parts["tag"], 1).astype(np.uint32)

    def _now(self) -> np.uint16:
        return np.uint16((int(self._header["tick"][0]) + 1) % 2**16)  # a slot that was never used has 0

    def _slots(self) -> int:
        # A power of two, whatever a crash left there.
        slots = 1 << (int(self._header["slots"][0]).bit_length() - 1) if self._header["slots"][0] else 0
        return min(max(slots, _FIRST_SLOTS), self._most_slots)


def table_bytes(most_entries: int) -> int:
    """The largest size of the table's file."""
    return _HEADER.itemsize + _SLOT_BYTES * _most_slots(most_entries)


def _most_slots(most_entries: int) -> int:
    return max(_BUCKET, 1 << (most_entries - 1).bit_length())


def _ticks(slots: NDArray[np.uint32]) -> NDArray[np.uint16]:
    return (slots >> np.uint32(16)).astype(np.uint16)


def _tags(slots: NDArray[np.uint32]) -> NDArray[np.uint32]:
    return slots & np.uint32(2**16 - 1)
