"""A thread of its own for what traces other processes.

ptrace belongs to a thread, and when that thread ends the kernel lets go of all that it traced. Only so is a thread
freed that could not be stopped because it stands in an uninterruptible call: it cannot be detached, and would stop
when it leaves that call, for as long as its tracer lives.
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
    """Tells the tracing thread that its caller has been interrupted (Ctrl-C)."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Say so."""
        self._event.set()

    def check(self) -> None:
        """Stop here if it was said.

        Raises:
            CheckpointFailed: the caller was interrupted.
        """
        if self._event.is_set():
            raise CheckpointFailed("the checkpoint was interrupted")


def in_own_thread(work: Callable[[Interruption], T]) -> T:
    """Run `work` in a new thread if there can be one, wait for its end; give its result or raise what it raised."""
    result: Future[T] = Future()
    interruption = Interruption()

    def run() -> None:
        try:
            result.set_result(work(interruption))
        except BaseException as error:
            result.set_exception(error)

    thread = Thread(run)
    if not thread.start():
        # Then in this one, where a Ctrl-C must wait: it would end the work anywhere.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return work(interruption)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        thread.join()
    except BaseException:
        interruption.set()
        thread.join()  # nothing of ours is left behind: the work ends in an orderly way
        raise
    return result.result()


@contextmanager
def no_collection() -> Iterator[ExitStack]:
    """Put off the collection of garbage, at most until the stack is closed.

    In a process as large as a Jupyter server one takes longer (130 ms) than all that is done to a kernel.
    """
    with ExitStack() as stack:
        if gc.isenabled():
            gc.disable()
            stack.callback(gc.enable)
        yield stack
