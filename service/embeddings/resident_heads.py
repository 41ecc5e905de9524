"""The heads that this process holds, those used last, up to so many bytes."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future

from zerogate.folded import ServedHead

Key = tuple[str, float]
"""A version's id and the strength of its dial."""


class ResidentHeads:
    """Loads each head once, however many threads ask, and while it loads one others are given out. Safe to share."""

    def __init__(self, max_bytes: int) -> None:
        """max_bytes: those that were used longest ago go when all together are larger. The one used last stays."""
        self._max_bytes = max_bytes
        self._held: OrderedDict[Key, tuple[ServedHead, int]] = OrderedDict()  # the last used stands last
        self._bytes = 0
        self._loading: dict[Key, Future[ServedHead]] = {}
        self._lock = threading.Lock()

    def get(self, key: Key, load: Callable[[], tuple[ServedHead, int]]) -> ServedHead:
        """The head. load: gives it and its bytes, where it is not held; what it raises is raised to all who wait for it."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key][0]
            others = self._loading.get(key)
            if others is None:
                mine = self._loading[key] = Future()
        if others is not None:
            return others.result()
        try:
            head, size = load()
        except BaseException as error:
            with self._lock:
                del self._loading[key]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._loading[key]
            self._held[key] = head, size
            self._bytes += size
            while self._bytes > self._max_bytes and len(self._held) > 1:
                _, (_, freed) = self._held.popitem(last=False)
                self._bytes -= freed
        mine.set_result(head)
        return head

    def holds(self, key: Key) -> bool:
        """Whether the head is here, loaded."""
        return key in self._held

    def clear(self) -> None:
        """Let go of all of them."""
        with self._lock:
            self._held.clear()
            self._bytes = 0
