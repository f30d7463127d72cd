"""The numbers of system calls are the kernel's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from torpor.arch.x86_64 import NR

HEADERS = [Path("/usr/include", place, "asm/unistd_64.h") for place in ("x86_64-linux-gnu", "")]


def test_every_number_is_that_of_the_headers() -> None:
    header = next((path for path in HEADERS if path.exists()), None)
    if header is None:
        pytest.skip("the kernel's headers are not installed (linux-libc-dev)")
    known = {name: int(number) for name, number in re.findall(r"^#define __NR_(\w+) (\d+)$", header.read_text(), re.M)}
    mine = {one.name: one.value for one in NR}
    assert {name: number for name, number in mine.items() if known.get(name, number) != number} == {}
    assert len(known.keys() & mine.keys()) > 100


def test_no_two_have_one_number() -> None:
    assert len(NR) == len(NR.__members__), "a second name for a number would be an alias"
