"""The conformance tests' stage, for tests of whole stories; and one more try for those on real clusters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.conftest import root, stage, user
from tests.integration.slurm_cluster import Cluster, cluster
from tests.integration.slurm_jobs import Submitted, job
from tests.users import User

__all__ = ["root", "stage", "user"]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    """A cluster of Slurm's."""
    with cluster() as running:
        yield running


@pytest.fixture
def work(slurm: Cluster, ordinary_account: User) -> Iterator[Submitted]:
    """A job's place on it."""
    with job(slurm, ordinary_account) as made:
        yield made


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what failed here up to twice more: schedulers, browsers and kernels have limits of time of their own.

    All results are printed ("rerun"), so one that fails now and then is seen; `make soak` gives no second try.
    """
    for item in items:
        if Path(__file__).parent in item.path.parents and not any(item.iter_markers("soak")):
            item.add_marker(pytest.mark.flaky(reruns=2))
