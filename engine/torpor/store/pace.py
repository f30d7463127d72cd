"""A limit on how fast a snapshot is written, so that many savers can share a file system."""

from __future__ import annotations

import threading
import time


class Pace:
    """Lets threads write no more than a number of bytes per second, all of them together."""

    def __init__(self, rate: int) -> None:
        """`rate` is in bytes per second; 0: no limit."""
        self._rate = rate
        self._lock = threading.Lock()
        self._next = time.monotonic()
        """When all that was let through is written at this rate."""

    def wait(self, size: int) -> None:
        """Wait until `size` bytes may be written."""
        if not self._rate:
            return
        with self._lock:
            now = time.monotonic()
            begin = max(self._next, now)
            self._next = begin + size / self._rate
        time.sleep(begin - now)
