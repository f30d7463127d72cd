"""How fast a snapshot may be written."""

from __future__ import annotations

import threading
import time

from torpor.store import Store
from torpor.store.pace import Pace


def test_several_threads_keep_to_a_rate_together() -> None:
    began = time.monotonic()
    pace = Pace(1 << 20)
    threads = [threading.Thread(target=pace.wait, args=(1 << 16,)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - began >= 4 / 16, "the first does not wait"


def test_without_a_rate_nobody_waits() -> None:
    pace = Pace(0)
    pace.wait(1 << 62)
    pace.wait(1 << 62)


def test_what_is_there_already_costs_no_time(store: Store) -> None:
    contents = [bytes([number]) * (1 << 16) for number in range(5)]
    for rate in (1 << 20, 1):
        began = time.monotonic()
        with store.writer("tree", rate=rate) as saver:
            for content in contents:
                saver.add_blocks(memoryview(content), [len(content)])
            saver.publish(b"", "")
        if rate > 1:
            assert time.monotonic() - began >= 4 / 16
