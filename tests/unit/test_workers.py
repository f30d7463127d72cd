"""Threads that do what is handed in, and what happens where there are none."""

from __future__ import annotations

import threading

import pytest

from torpor.workers import Workers, started


@pytest.fixture(params=["threads", "none"])
def workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Workers:
    """Two threads, or a system that gives none."""
    if request.param == "none":

        def refuse(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", refuse)
    return Workers(2, "test")


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
    workers = Workers(1, "test")
    begun, go = threading.Event(), threading.Event()
    first = workers.submit(lambda: (begun.set(), go.wait()))
    begun.wait()
    second = workers.submit(pow, 2, 2)
    workers.shutdown(wait=False, cancel_futures=True)
    go.set()
    workers.shutdown()
    assert second.cancelled()
    assert first.done()


def test_a_thread_that_cannot_be_started_is_told(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    thread = threading.Thread(target=int)
    there = bool(workers._threads)
    assert started(thread) == there
    if there:
        thread.join()
    workers.shutdown()
