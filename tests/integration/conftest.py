"""The conformance tests' stage, for tests of whole stories; and one more try for those on real clusters."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.conftest import root, stage, user

__all__ = ["root", "stage", "user"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what failed here up to twice more: schedulers, browsers and kernels have limits of time of their own.

    All results are printed ("rerun"), so one that fails now and then is seen; `make soak` gives no second try.
    """
    for item in items:
        if Path(__file__).parent in item.path.parents and not any(item.iter_markers("soak")):
            item.add_marker(pytest.mark.flaky(reruns=2))
