"""The threads of a server: what is asked of them during its stop is refused in words."""

from __future__ import annotations

import asyncio

import pytest

from torpor_jupyter.kernels.state import Unsuitable
from torpor_jupyter.kernels.workers import Workers


def test_what_comes_when_they_have_ended_is_refused() -> None:
    async def asked() -> None:
        workers = Workers()
        assert await workers.run(max, 1, 2) == 2 and await workers.read(min, 1, 2) == 1
        workers.close()
        for call in (workers.run, workers.read):
            with pytest.raises(Unsuitable, match="stopping"):
                await call(max, 1, 2)

    asyncio.run(asked())
