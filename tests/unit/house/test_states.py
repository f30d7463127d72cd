"""Every request that the kernel's headers know and that sets a state has its row in docs/objects.md, or sets none."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from tests.unit.house import states
from tests.unit.house.states import Requests
from tests.unit.house.test_objects_table import ROWS

INCLUDE = (Path("/usr/include"), Path("/usr/include/x86_64-linux-gnu"))
TABLES = {name: table for name, table in vars(states).items() if isinstance(table, Requests)}
EACH = pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)


def known(table: Requests) -> set[str]:
    """The names in those of a table's headers that are installed."""
    texts = [path.read_text() for header in table.headers for path in (at / header for at in INCLUDE) if path.exists()]
    if not texts:
        pytest.skip("the kernel's headers are not installed (linux-libc-dev)")
    found = {name for text in texts for name in re.findall(table.pattern, text, re.MULTILINE)}
    assert found
    return found


def listed(table: Requests) -> Iterator[str]:
    """Its names, and patterns of names."""
    for names in (*table.rows.values(), *table.nothing.values()):
        yield from names.split()


@EACH
def test_every_name_of_the_headers_is_listed(table: Requests) -> None:
    names = list(listed(table))
    assert {one for one in known(table) if not any(fnmatchcase(one, name) for name in names)} == set()


@EACH
def test_every_name_is_listed_once_and_has_a_row(table: Requests) -> None:
    assert [name for name, count in Counter(listed(table)).items() if count > 1] == []
    assert [begin for begin in table.rows if not any(row.what.startswith(begin) for row in ROWS)] == []


def test_every_file_of_a_process_that_may_be_written_is_listed() -> None:
    here = [*Path("/proc/self").iterdir(), *Path("/proc/self/attr").glob("*")]
    may_be_written = {path.name for path in here if stat.S_ISREG(mode := os.lstat(path).st_mode) and mode & 0o222}
    names = {name for line in states.WRITABLE for name in line.split()}
    assert "comm" in may_be_written
    assert may_be_written - names == set()
    assert [begin for begin in states.WRITABLE.values() if not any(row.what.startswith(begin) for row in ROWS)] == []
