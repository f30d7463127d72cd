"""Threads that do what is handed in, and what happens where there are none."""

from __future__ import annotations

import _thread
import errno
import os
import signal
import subprocess
import sys
import threading
from io import FileIO

import pytest

from tests.leaks import no_more_descriptors
from torpor.errors import RestoreFailed
from torpor.util.workers import NO_THREAD, Thread, Workers, run_in_thread


@pytest.fixture(params=["threads", "none"])
def workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Workers:
    """Two threads, or a system that gives none."""
    if request.param == "none":

        def refuse(*_: object) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(_thread, "start_new_thread", refuse)
    return Workers(2)


def test_results_come_in_whatever_does_the_work(workers: Workers) -> None:
    with workers:
        futures = [workers.submit(pow, k, 2) for k in range(100)]
        assert [future.result() for future in futures] == [k * k for k in range(100)]


def test_what_is_raised_is_the_results(workers: Workers) -> None:
    with workers:
        future = workers.submit(int, "no number")
        with pytest.raises(ValueError, match="no number"):
            future.result()


def test_what_was_not_begun_can_be_cancelled() -> None:
    workers = Workers(1)
    begun, go = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go.wait()

    first = workers.submit(work)
    begun.wait()
    second = workers.submit(pow, 2, 2)
    workers.shutdown(wait=False, cancel_futures=True)
    go.set()
    workers.shutdown()
    assert second.cancelled()
    assert first.done()


def test_an_error_as_a_thread_begins_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(FileIO):
        def close(self) -> None:
            was_open = not self.closed
            super().close()
            if was_open:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("torpor.util.workers.FileIO", Failing)
    with Workers(2) as workers:
        assert workers.submit(pow, 2, 2).result(timeout=100) == 4


def test_a_thread_that_cannot_be_started_is_told(workers: Workers) -> None:
    done: list[int] = []
    thread = Thread(lambda: done.append(1))
    there = bool(workers._threads)
    assert thread.start() == there
    thread.join()
    assert bool(done) == there
    workers.shutdown()


def test_a_thread_is_waited_for_and_leaves_nothing_open() -> None:
    go, done = threading.Event(), [0]

    def work() -> None:
        go.wait()
        done.append(1)

    thread = Thread(work)
    with no_more_descriptors():
        assert thread.start()
    go.set()
    thread.join()
    thread.join()
    assert done == [0, 1]


MAIN_BLOCKS = """
import os, signal
from torpor.util.workers import Thread
waiting, go = os.pipe()
thread = Thread(lambda: os.read(waiting, 1))
before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
assert thread.start() and signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
os.kill(os.getpid(), signal.SIGUSR1)
os.write(go, b"!")
thread.join()
print(signal.sigwait([signal.SIGUSR1]))
"""
"""A thread that does not block the signal would have it delivered, and it would end the process."""


def test_a_signal_that_the_main_thread_blocks_waits_for_it() -> None:
    ran = subprocess.run([sys.executable, "-c", MAIN_BLOCKS], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout) == (0, f"{int(signal.SIGUSR1)}\n"), ran.stderr


def test_what_is_done_apart_gives_and_raises_what_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_in_thread(threading.get_ident) != threading.get_ident()
    with pytest.raises(ValueError, match="invalid literal"):
        run_in_thread(lambda: int("x"))
    monkeypatch.setattr(Thread, "start", lambda _: False)
    with pytest.raises(RestoreFailed, match=NO_THREAD):
        run_in_thread(threading.get_ident)


WITHOUT_MEMORY = """
import re, resource, threading
from torpor.util.workers import Thread
STACK = 8 << 20
threading.stack_size(STACK)
size = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (size + STACK + 4096, -1))
thread = Thread(int)
print(thread.start())
thread.join()
"""
"""There is room for the stack of a thread, and for nothing else that it needs: CPython's own start() hangs."""


def test_a_thread_without_memory_for_its_first_frame_is_none() -> None:
    command = [sys.executable, "-c", WITHOUT_MEMORY]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert ran.stdout == "False\n", ran.stderr
