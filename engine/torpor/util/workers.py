"""Threads, and what to do if none can be started, at a limit of processes (ulimit -u, pids.max) or of memory."""

from __future__ import annotations

import _thread
import os
import signal
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from io import FileIO
from queue import Empty, SimpleQueue
from typing import ParamSpec, TypeVar

from torpor._native import ffi
from torpor.errors import RestoreFailed

# glibc loads this library when the first thread calls pthread_exit(3), as CPython's do, and aborts if memory is short.
with suppress(OSError):  # not glibc
    _UNWINDER = ffi.dlopen("libgcc_s.so.1")

P = ParamSpec("P")
T = TypeVar("T")

_EVERY_SIGNAL = signal.valid_signals()
NO_THREAD = "no thread can be started"
RAISE_LIMIT = "raise the limit of processes (ulimit -u, pids.max), or free memory"


class Thread:
    """Run a function that raises nothing in its own thread.

    threading.Thread.start() waits until the new thread reports that it runs, but a thread without memory for its first
    frame ends silently (CPython's gh-140746). This one holds the end of a pipe, which is closed when the thread ends.

    It blocks all signals: one that the main thread blocks until it can pass it on would otherwise be delivered to this
    thread (complete_signal(), kernel/signal.c), and might end the process.
    """

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work
        self._over = _thread.allocate_lock()
        """Held while the thread runs."""
        self._began = False

    def start(self) -> bool:
        """Start the thread; return whether the system had a thread and memory for it."""
        try:
            began, beginning = os.pipe2(os.O_CLOEXEC)
        except OSError:  # at the limit of descriptors
            return False
        self._over.acquire()
        self._began = True  # also if a Ctrl-C interrupts the wait below
        try:
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())  # a call of its own: the next may be interrupted
            try:
                signal.pthread_sigmask(signal.SIG_BLOCK, _EVERY_SIGNAL)
                _thread.start_new_thread(self._run, (FileIO(beginning, "w"),))
            finally:
                # Not SIG_SETMASK: the mask may have signals that libc reserves, of which Python warns.
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _EVERY_SIGNAL - mask)
            self._began = os.read(began, 1) != b""
            os.read(began, 1)  # end of file: the thread has closed the pipe
        except (RuntimeError, MemoryError):  # pthread_create(3) failed
            self._began = False
        finally:
            os.close(began)
        return self._began

    def _run(self, beginning: FileIO) -> None:
        try:
            try:
                beginning.write(b"!")
            finally:
                with suppress(OSError):  # it is closed in any case
                    beginning.close()  # before the work begins, which may unshare the descriptor table
            self._work()
        finally:
            self._over.release()

    def join(self) -> None:
        """Wait until the thread has ended, if it was started."""
        if self._began:
            with self._over:
                pass


def run_in_thread(work: Callable[[], T]) -> T:
    """Run a function in its own thread, where it may call unshare(2), and return its result.

    Raises:
        RestoreFailed: no thread can be started.
        BaseException: whatever the function raises.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    if not (thread := Thread(run)).start():
        raise RestoreFailed(NO_THREAD, advice=RAISE_LIMIT)
    thread.join()
    return future.result()


class Workers(Executor):
    """Threads that run submitted calls in order. If none could be started, `submit` runs the call itself."""

    def __init__(self, count: int) -> None:
        """Start up to `count` threads."""
        self._queue: SimpleQueue[tuple[Future[object], Callable[[], None]] | None] = SimpleQueue()
        made = [Thread(self._serve) for _ in range(count)]
        self._threads = [thread for thread in made if thread.start()]

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Submit a call; return the future of its result."""
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
        """End the threads after all submitted calls, or after the current ones if `cancel_futures`."""
        try:
            while cancel_futures and (item := self._queue.get_nowait()) is not None:
                item[0].cancel()
        except Empty:
            pass
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads if wait else ():
            thread.join()
