"""Threads, and what becomes of their work where no more can be had: at a limit of processes (ulimit -u, pids.max)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import Empty, SimpleQueue
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def started(thread: threading.Thread) -> bool:
    """Start a thread; whether the system gives us one."""
    try:
        thread.start()
    except RuntimeError:  # "can't start new thread": pthread_create(3) failed
        return False
    return True


class Workers(Executor):
    """Threads that do what is handed in, in that order; where there are none, whoever hands it in does it at once."""

    def __init__(self, count: int, name: str) -> None:
        """Start up to `count` threads."""
        self._queue: SimpleQueue[tuple[Future[object], Callable[[], None]] | None] = SimpleQueue()
        made = [threading.Thread(target=self._serve, name=f"{name}-{k}") for k in range(count)]
        self._threads = [thread for thread in made if started(thread)]

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Hand in a call; gives its result to come."""
        future: Future[T] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        if self._threads:
            self._queue.put((future, work))  # type: ignore[arg-type]
        else:
            work()
        return future

    def _serve(self) -> None:
        while (item := self._queue.get()) is not None:
            item[1]()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads, when all is done that was handed in and, if so asked, was not cancelled."""
        try:
            while cancel_futures and (item := self._queue.get_nowait()) is not None:
                item[0].cancel()
        except Empty:
            pass
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads if wait else ():
            thread.join()
