"""A separate thread that traces other processes.

ptrace is bound to a thread: when that thread ends, the kernel detaches all that it traces. This is the only way to
release a thread that could not be stopped because it is in an uninterruptible call. It cannot be detached, and as long
as its tracer lives it would stop when it leaves that call.
"""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from torpor.errors import CheckpointFailed
from torpor.util.workers import Thread

T = TypeVar("T")


class Interruption:
    """Tells the tracing thread that its caller was interrupted (Ctrl-C)."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Note that the caller was interrupted."""
        self._event.set()

    def check(self) -> None:
        """Raise if the caller was interrupted.

        Raises:
            CheckpointFailed: the caller was interrupted.
        """
        if self._event.is_set():
            raise CheckpointFailed("the checkpoint was interrupted")


def in_own_thread(work: Callable[[Interruption], T]) -> T:
    """Run `work` in a new thread and return its result or raise its error. Without new threads, run it in this one.

    Raises:
        KeyboardInterrupt: the caller was interrupted; its argument is the result if `work` was done before it heard.
    """
    result: Future[T] = Future()
    interruption = Interruption()

    def run() -> None:
        try:
            result.set_result(work(interruption))
        except BaseException as error:
            result.set_exception(error)

    thread = Thread(run)
    if not thread.start():
        # Run it in this thread, with Ctrl-C blocked: it could end the work at any point.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return work(interruption)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT} - mask)
    try:
        thread.join()
    except BaseException as error:
        interruption.set()
        thread.join()  # let the work end in an orderly way, so that nothing of ours stays behind
        if isinstance(error, KeyboardInterrupt) and not result.exception():
            raise KeyboardInterrupt(result.result()) from None
        raise
    return result.result()


@contextmanager
def no_collection() -> Iterator[ExitStack]:
    """Disable garbage collection until the stack is closed, or earlier.

    In a process as large as a Jupyter server a collection takes longer (130 ms) than all that a checkpoint does to a
    kernel.
    """
    with ExitStack() as stack:
        if gc.isenabled():
            gc.disable()
            stack.callback(gc.enable)
        yield stack
