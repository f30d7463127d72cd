"""Fixtures for every test: the users to act as, private directories, and the look at what was left behind."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import tempfile
import uuid
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from tests.leaks import MARK, Before
from tests.users import BIN, PROVE, User, ordinary_user

ROOT = Path(__file__).parents[1]


settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.register_profile("new", deadline=None, database=None, print_blob=True)
settings.load_profile("fixed")
"""Properties are tried on the same examples in every run, so that what passed passes again.

New ones are drawn by `make fuzz`.
"""


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Have every restore proven, by whomever it is done.

    Undo what `nohup` and a shell's `&` do: programs under test would inherit that these signals are ignored.
    """
    os.environ[PROVE] = "1"
    if hasattr(config, "workerinput"):
        config.option.basetemp = None  # that of the one who started the workers is in another /tmp
    for number, action in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, action)


HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")
ENOUGH = 4
"""Huge pages, of 2 MiB each."""


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, bool, bool]:
    """Set a few pages of hugetlbfs aside while tests run, where that may be done; once for all workers."""
    if hasattr(session.config, "workerinput") or not os.access(HUGE_PAGES, os.W_OK):
        return (yield)
    before = HUGE_PAGES.read_text()
    HUGE_PAGES.write_text(str(max(ENOUGH, int(before))))
    try:
        return (yield)
    finally:
        HUGE_PAGES.write_text(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow ones come first."""
    folders = ("integration", "conformance", "unit")
    items.sort(key=lambda item: folders.index(item.path.parent.name) if item.path.parent.name in folders else -1)


PROGRAM = re.compile(r"[\[-](\w+\.(?:c|py|sh|S))\]$")


class Together(LoadScopeScheduling):  # type: ignore[misc]
    """One worker runs the tests of a file, which use the same server or cluster, and those of a compiled program.

    xdist 3.8 has marks for that (xdist_group), which it writes into what pytest 9.1 and later does not read any more.
    """

    def _split_scope(self, nodeid: str) -> str:
        program = PROGRAM.search(nodeid)
        return nodeid.partition("::")[0] + (f"/{program[1]}" if program else "")


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together:
    config.option.loadscopereorder = False  # ours has the slow ones first
    return Together(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in one place what was skipped, and why."""
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.getreports("skipped")
        if isinstance(report.longrepr, (tuple, list))
    )
    told = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
    terminalreporter.write_line(f"skipped: {told or 'nothing'}")


@contextmanager
def nothing_left() -> Iterator[str]:
    """Fail if a process, a mount or a file of ours is left. Yields a mark that processes are to carry."""
    mark = uuid.uuid4().hex
    before = Before.now()
    yield mark
    if leaks := before.left(mark):
        pytest.fail("left behind: " + "; ".join(leaks), pytrace=False)


@pytest.fixture(autouse=True)
def no_leaks(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Fail the test if anything of ours is left. Yields the mark its processes carry."""
    with nothing_left() as mark:
        monkeypatch.setenv(MARK, mark)
        yield mark


@pytest.fixture(scope="session")
def ordinary() -> Iterator[pwd.struct_passwd]:
    """The ordinary user of this run, who can read the checkout and run its environment."""
    with ordinary_user() as user:
        looker = User(user.pw_name, user.pw_uid, user.pw_gid, Path("/"), {})
        tried = looker.run([BIN / "python", "-c", "import sys; open(sys.argv[1]); import torpor._native", __file__])
        if tried.returncode:
            pytest.exit(
                f"the user {user.pw_name} cannot use {ROOT} ('make test' works in a readable copy): {tried.stderr}"
            )
        yield user


def _user(name: str, uid: int, gid: int, mark: str) -> Iterator[User]:
    # Not below pytest's own directory, which only the one who runs pytest may enter.
    tmp = Path(tempfile.mkdtemp(prefix="torpor-test-", dir="/tmp"))
    user = User(name, uid, gid, tmp, {MARK: mark})
    user.own(tmp)
    user.home.mkdir(mode=0o700)
    user.own(user.home)
    try:
        yield user
    finally:
        shutil.rmtree(tmp)


@pytest.fixture
def ordinary_account(ordinary: pwd.struct_passwd, no_leaks: str) -> Iterator[User]:
    """An ordinary user to act as, for tests that make no sense as root."""
    yield from _user(ordinary.pw_name, ordinary.pw_uid, ordinary.pw_gid, no_leaks)


@pytest.fixture(scope="module")
def file_account(ordinary: pwd.struct_passwd) -> Iterator[User]:
    """An ordinary user for what the tests of a file share. Nothing of it may be left after the last one."""
    with nothing_left() as mark:
        yield from _user(ordinary.pw_name, ordinary.pw_uid, ordinary.pw_gid, mark)


@pytest.fixture
def root_account(no_leaks: str) -> Iterator[User]:
    """Root to act as, for tests that need it; skipped when the tests run as an ordinary user."""
    if os.geteuid():
        pytest.skip("needs root; the tests run as an ordinary user")
    yield from _user("root", 0, 0, no_leaks)


@pytest.fixture(params=["root", "user"])
def as_user(request: pytest.FixtureRequest) -> User:
    """Each of the two kinds of user in turn."""
    user: User = request.getfixturevalue("root_account" if request.param == "root" else "ordinary_account")
    return user
