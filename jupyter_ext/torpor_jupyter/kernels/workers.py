"""The threads in which the engine works and the store is read, so that the server's event loop is not blocked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from torpor_jupyter.kernels.state import Unsuitable

T = TypeVar("T")


class Workers:
    """One engine thread for all kernels: two checkpoints at once would only compete for the disk.

    A second thread reads the store, so that a read does not wait for a checkpoint.
    """

    def __init__(self) -> None:
        """Start no thread yet: each is started when it is needed."""
        self._engine = ThreadPoolExecutor(1, "torpor-engine")
        self._reader = ThreadPoolExecutor(1, "torpor-reader")
        self._closed = False

    async def run(self, call: Callable[..., T], *arguments: Any) -> T:
        """Run `call` in the engine's thread, after the calls before it. Raises Unsuitable after `close`."""
        return await self._in(self._engine, call, *arguments)

    async def read(self, call: Callable[..., T], *arguments: Any) -> T:
        """Run `call`, which reads the store, also while the engine is at work. Raises Unsuitable after `close`."""
        return await self._in(self._reader, call, *arguments)

    async def _in(self, thread: ThreadPoolExecutor, call: Callable[..., T], *arguments: Any) -> T:
        if self._closed:
            raise Unsuitable("the server is stopping", advice="ask the next server")
        return await asyncio.get_running_loop().run_in_executor(thread, call, *arguments)

    def close(self) -> None:
        """Wait until the threads have done their work, and end them."""
        self._closed = True
        self._engine.shutdown()
        self._reader.shutdown()
