"""The conformance tests' stage, for tests of whole stories, and a Slurm cluster."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.conftest import root, stage, user
from tests.integration.slurm_cluster import Cluster, cluster
from tests.integration.slurm_jobs import Submitted, job
from tests.jupyter import Server, running, used
from tests.users import User

__all__ = ["root", "stage", "user"]


@pytest.fixture(scope="module")
def file_server(file_account: User) -> Iterator[Server]:
    """A running Jupyter server of an ordinary user, which the tests of a file share."""
    with running(Server(file_account)) as server:
        yield server


@pytest.fixture
def server(file_server: Server) -> Iterator[Server]:
    """The file's server, with no kernel, no checkpoint and no notebook."""
    with used(file_server):
        yield file_server


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
