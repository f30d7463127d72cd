"""The threads of a server: what is asked of them during its stop is refused in words."""

from __future__ import annotations

import asyncio
from threading import Barrier, Event

import pytest

from torpor_jupyter.kernels.state import Unsuitable
from torpor_jupyter.kernels.workers import SAVERS, Workers


def test_what_comes_when_they_have_ended_is_refused() -> None:
    async def asked() -> None:
        workers = Workers()
        assert await workers.run(max, 1, 2) == 2 and await workers.read(min, 1, 2) == 1
        workers.close()
        for call in (workers.run, workers.read, workers.save, workers.wake):
            with pytest.raises(Unsuitable, match="stopping"):
                await call(max, 1, 2)

    asyncio.run(asked())


def test_kernels_are_saved_side_by_side_and_woken_alone() -> None:
    async def asked() -> None:
        workers = Workers()
        together, go_on, done = Barrier(SAVERS + 1), Event(), list[str]()

        def save() -> None:
            together.wait(60)
            assert go_on.wait(60)
            done.append("saved")

        saves = [asyncio.ensure_future(workers.save(save)) for _ in range(SAVERS)]
        await workers.read(together.wait, 60)
        wake = asyncio.ensure_future(workers.wake(done.append, "woken"))
        await asyncio.sleep(0)
        assert not done, "they are not done"
        go_on.set()
        await asyncio.gather(*saves, wake)
        assert done == ["saved"] * SAVERS + ["woken"]
        workers.close()

    asyncio.run(asked())
