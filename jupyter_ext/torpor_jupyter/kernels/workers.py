"""The threads in which the engine works and the store is read, so that the server's event loop is not blocked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Semaphore
from typing import Any, TypeVar

from torpor_jupyter.kernels.state import Unsuitable

T = TypeVar("T")


SAVERS = 2
"""How many kernels are saved at a time: while one waits for the disk, another uses the processors. More would wait for
Python's lock: on a disk that takes 50 ms for a sync, 14 kernels took 20 s one by one, 10 s by two and by four.
"""


class Workers:
    """Threads for the engine: SAVERS that save kernels, and one for all else that it does.

    Nothing is saved while a kernel is woken: the engine forks for that, and these children have, for a moment, copies
    of what a save holds of its kernel; it would take them for outsiders that have the kernel's objects open too.

    Another thread reads the store, so that a read does not wait for the engine.
    """

    def __init__(self) -> None:
        """Start no thread yet: each is started when it is needed."""
        self._engine = ThreadPoolExecutor(1, "torpor-engine")
        self._savers = ThreadPoolExecutor(SAVERS, "torpor-saver")
        self._reader = ThreadPoolExecutor(1, "torpor-reader")
        self._permits = Semaphore(SAVERS)
        """A save has one, a wake all."""
        self._closed = False

    async def run(self, call: Callable[..., T], *arguments: Any) -> T:
        """Run `call` in the engine's thread, after the calls before it. Raises Unsuitable after `close`."""
        return await self._in(self._engine, call, *arguments)

    async def save(self, call: Callable[..., T], *arguments: Any) -> T:
        """Run `call`, which saves a kernel, beside the saves of others. Raises Unsuitable after `close`."""
        return await self._in(self._savers, self._with_permits, 1, call, *arguments)

    async def wake(self, call: Callable[..., T], *arguments: Any) -> T:
        """Run `call`, which wakes a kernel, in the engine's thread, beside no save. Raises Unsuitable after `close`."""
        return await self._in(self._engine, self._with_permits, SAVERS, call, *arguments)

    def _with_permits(self, count: int, call: Callable[..., T], *arguments: Any) -> T:
        with ExitStack() as stack:
            for _ in range(count):
                stack.enter_context(self._permits)
            return call(*arguments)

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
        self._savers.shutdown()
        self._reader.shutdown()
