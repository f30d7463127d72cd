"""Blocks are compared with their hashes in another thread, while the tree is built."""

from __future__ import annotations

from collections.abc import Collection

from torpor.store import SnapshotReader
from torpor.util.workers import Thread

_TOGETHER = 1024
"""Blocks between two chances to cancel a verification, so that a failed restore does not wait for gigabytes."""


class Verification:
    """Compares all blocks with their hashes in another thread while the tree is built."""

    def __init__(self, reader: SnapshotReader, apart: Collection[int] = ()) -> None:
        """Compare the blocks of a snapshot, except those that others compare (`apart`)."""
        self._reader = reader
        self._rows = [row for row in range(len(reader.blocks)) if row not in apart]
        self._thread = Thread(self._run)
        self._failure: BaseException | None = None
        self._given_up = False

    def start(self) -> None:
        """Begin. If no thread can be started, do all of it now."""
        if not self._thread.start():
            self._run()

    def _run(self) -> None:
        try:
            for at in range(0, len(self._rows), _TOGETHER):
                if self._given_up:
                    return
                self._reader.verify_blocks(self._rows[at : at + _TOGETHER])
        except BaseException as error:
            self._failure = error

    def finish(self) -> None:
        """Wait for the end of the comparison.

        Raises:
            ImageDamaged, StoreError: a block is not what was written.
        """
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def end(self) -> None:
        """Cancel the comparison if it still runs; afterwards it does not use the reader."""
        self._given_up = True
        self._thread.join()
