"""The kernel refuses any one call of a checkpoint or a restore, or its process dies there: nothing is lost or left."""

from __future__ import annotations

import pytest

from tests.conformance.conftest import root, stage, user
from tests.conformance.harness import Actor, Stage
from tests.inject.sweep import Act, Ending, Report, Saving, Waking, playing, sample

__all__ = ["root", "stage", "user"]


def strike(stage: Stage, actor: Actor, act: type[Act], most: int, seed: int) -> Report:
    """Do an act with some of all faults there are."""
    with playing(stage, actor, act) as doing:
        calls = doing.calls()
        report = doing.strike(sample(calls, most, seed))
    print(f"{act.__name__}, {len(calls)} calls: {report}")
    return report


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("act", [Saving, Ending, Waking])
def test_some_faults(stage: Stage, user: Actor, act: type[Act]) -> None:
    report = strike(stage, user, act, 10, seed=11)
    assert report.done["errors"] > 4, report


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("act", [Saving, Ending, Waking])
@pytest.mark.parametrize("who", ["user", "root"])
def test_many_faults(stage: Stage, request: pytest.FixtureRequest, who: str, act: type[Act]) -> None:
    report = strike(stage, request.getfixturevalue(who), act, 800, seed=1)
    assert report.done["errors"] > 300, report
