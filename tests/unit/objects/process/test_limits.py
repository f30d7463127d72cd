"""Resource limits: read from /proc, set again, never above the restorer's own."""

from __future__ import annotations

import resource
from resource import RLIMIT_CORE, RLIMIT_NOFILE, RLIMIT_STACK

import pytest

from tests.unit.objects.process.inside import described, make, restored
from torpor.image import image_pb2 as pb
from torpor.objects.process.limits import LIMIT_NAMES, OF_MEMORY, UNLIMITED, Limits, widening

LIMITS = Limits()
FILES = (800, 900)
"""More than a process of the test run has open: at its limit it can be asked nothing."""


def test_limits_come_back() -> None:
    def lower() -> None:
        resource.setrlimit(RLIMIT_NOFILE, FILES)
        resource.setrlimit(RLIMIT_CORE, (0, resource.getrlimit(RLIMIT_CORE)[1]))
        resource.setrlimit(RLIMIT_STACK, (1 << 20, 1 << 21))

    image = described(LIMITS, lower)
    found = {one.resource: (one.soft, one.hard) for one in image.limits}
    assert len(found) == len(LIMIT_NAMES) == len(image.limits)
    assert found[RLIMIT_NOFILE] == FILES and found[RLIMIT_STACK] == (1 << 20, 1 << 21)
    assert found[RLIMIT_CORE][0] == 0
    assert restored(LIMITS, image) == image


def test_what_is_above_the_restorers_limit_is_that_and_is_told() -> None:
    process = pb.Process()
    process.limits.add(resource=RLIMIT_NOFILE, soft=UNLIMITED, hard=UNLIMITED)
    process.limits.add(resource=RLIMIT_STACK, soft=1 << 20, hard=1 << 21)
    process.limits.add(resource=RLIMIT_CORE, soft=7, hard=UNLIMITED)

    def few() -> None:
        resource.setrlimit(RLIMIT_NOFILE, FILES)

    found = {one.resource: (one.soft, one.hard) for one in restored(LIMITS, process, few).limits}
    assert found[RLIMIT_NOFILE] == (FILES[1],) * 2
    hard = [UNLIMITED] * len(LIMIT_NAMES)
    hard[RLIMIT_NOFILE] = FILES[1]
    hard[RLIMIT_STACK] = 1 << 20
    assert list(LIMITS.warnings(process, tuple(hard))) == [
        f"its limit of open files is lower than it was: yours is {FILES[1]}",
        f"its hard limit of stack size is lower than it was: yours is {1 << 20}",
    ]


def test_limits_on_memory_are_wide_while_a_process_is_built() -> None:
    hard = [10 + number for number in range(len(LIMIT_NAMES))]
    wide = list(widening(hard))
    assert [call.args[1] for call in wide] == list(OF_MEMORY)

    def low() -> None:
        for number in OF_MEMORY:
            hard = resource.getrlimit(number)[1]
            resource.setrlimit(number, (1 << 36 if hard == resource.RLIM_INFINITY else hard // 2, hard))
        for call in widening(LIMITS.host()):
            make(call)

    found = {one.resource: one for one in described(LIMITS, low).limits}
    assert all(found[number].soft == found[number].hard for number in OF_MEMORY)


@pytest.mark.parametrize(("number", "wrong"), [(len(LIMIT_NAMES) - 1, False), (len(LIMIT_NAMES), True)])
def test_a_limit_that_is_not_known(number: int, wrong: bool) -> None:
    process = pb.Process()
    process.limits.add(resource=number)
    assert bool(list(LIMITS.validate_form(process))) == wrong
