"""docs/objects.md, held against the code: it names every kind, and nothing that is not there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from torpor.objects.fds import descriptors, unsupported
from torpor.objects.memory import vm_flags
from torpor.restorer.expected_differences import ALLOWED, Allowed

ROOT = Path(__file__).parents[3]
CONFORMANCE = ROOT / "tests/conformance"
PRCTL_HEADER = Path("/usr/include/linux/prctl.h")
VERDICTS = {"kept", "kept if", "refused", "lost"}


class Row(NamedTuple):
    """A row of the page."""

    what: str
    verdict: str
    why: str
    shown_by: frozenset[str]


def rows() -> list[Row]:
    """Those of every table, without headings."""
    found = []
    for line in (ROOT / "docs/objects.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and cells[1] not in ("", "---"):
            what, verdict, why, shown_by = cells
            found.append(Row(what, verdict, why, frozenset(shown_by.split(", ")) - {"-"}))
    return found


ROWS = rows()


def verdicts(word: str) -> list[str]:
    """The verdicts of the rows about an object."""
    return [row.verdict for row in ROWS if word in row.what]


def programs(*folders: str) -> set[str]:
    """The conformance programs of some folders."""
    found = {path.name for folder in folders for path in (CONFORMANCE / folder).rglob("*")}
    return {name for name in found if name.endswith((".c", ".py", ".sh")) and not name.startswith("ready.")}


@pytest.mark.parametrize("allowed", ALLOWED, ids=lambda one: one.path)
def test_what_a_wake_may_change_has_its_row(allowed: Allowed) -> None:
    """Each entry of the list names the one row that says so, by how it begins."""
    assert allowed.why
    found = [row for row in ROWS if row.what.startswith(allowed.row)]
    assert found, f"no row of docs/objects.md begins with {allowed.row!r}"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.what)
def test_a_row_says_all(row: Row) -> None:
    assert row.verdict in VERDICTS
    assert row.why or row.verdict == "kept"
    assert row.shown_by <= programs("programs", "storms", "refused")
    if row.shown_by and row.verdict in ("kept", "kept if"):
        assert row.shown_by & programs("programs", "storms")
    if row.shown_by and row.verdict == "refused":
        assert row.shown_by & programs("refused")


def test_every_program_shows_something() -> None:
    shown = frozenset().union(*(row.shown_by for row in ROWS))
    assert programs("programs", "storms", "refused") - shown == EVERYDAY


EVERYDAY = {"afterlife.c", "threading_py.py"}
"""Programs that show how what is above works together."""


def test_every_flag_of_a_mapping_is_listed() -> None:
    kept = {flag.decode() for flag in vm_flags.KEPT_FLAGS}
    refused = {flag.decode() for flag in (vm_flags.REFUSED_FLAGS | vm_flags.OTHER_PROCESSORS)}
    listed = {flag: row.verdict for row in ROWS for flag in re.findall(r"`([a-z]{2})`", row.what)}
    assert listed.keys() == kept | refused
    assert {flag for flag, verdict in listed.items() if verdict == "refused"} == refused


def test_every_kind_of_descriptor_is_listed() -> None:
    names = {type(kind).__name__ for kind in descriptors.KINDS if not isinstance(kind, unsupported.UnsupportedKind)}
    listed = {name for row in ROWS for name in re.findall(r"\(`([A-Z][A-Za-z]+)`\)", row.what)}
    assert listed == names
    for name in names:
        assert set(verdicts(f"(`{name}`)")) <= {"kept", "kept if"}


def test_every_refused_descriptor_is_listed() -> None:
    words = [f"`{link}`" for link in unsupported.ANONYMOUS]
    words += [f" {major}" if minor < 0 else f" {major}:{minor}" for major, minor in unsupported.DEVICES]
    assert {word: verdicts(word) for word in words} == {word: ["refused"] for word in words}
    listed = re.findall(r"`(anon_inode:[^`]+)`", "".join(row.what for row in ROWS))
    assert set(listed) == set(unsupported.ANONYMOUS)


def test_every_request_of_prctl_is_listed() -> None:
    if not PRCTL_HEADER.exists():
        pytest.skip("the kernel's headers are not installed (linux-libc-dev)")
    # A request stands at the line's beginning, its values behind a blank.
    known = set(re.findall(r"^#define (PR_\w+)\s+[0-9]", PRCTL_HEADER.read_text(), re.M))
    listed = set(re.findall(r"`(PR_[A-Z0-9_]+)`", " ".join(row.what for row in ROWS)))
    told = {name.replace("_SET_", "_GET_") for name in listed} | READ_OR_UNDONE
    assert known - listed - told == set()


@pytest.mark.parametrize(
    ("header", "pattern", "others"),
    [
        ("asm-generic/fcntl.h", r"^#define (F_\w+)\s+[0-9]", "OF_FCNTL"),
        ("linux/fcntl.h", r"^#define (F_\w+)\s+\(", "OF_FCNTL"),
        ("asm-generic/ioctls.h", r"^#define (TC[A-Z]\w+|[TF]IO\w+)\s+(?:0x5|_IO)", "OF_TERMINALS"),
        ("asm-generic/sockios.h", r"^#define (FIO\w+|SIOC\w+)\s+0x", "OF_SOCKETS"),
        ("linux/eventpoll.h", r"^#define (EPIOC(?!_)\w+)\s+_IO", "OF_OTHERS"),
        ("linux/timerfd.h", r"^#define (TFD_IOC\w+)\s+_IO", "OF_OTHERS"),
        ("linux/inotify.h", r"^#define (INOTIFY_IOC\w+)\s+_IO", "OF_OTHERS"),
        ("linux/keyctl.h", r"^#define (KEYCTL_(?!CAPS|SUPPORTS)\w+)\s+[0-9]", "OF_KEYS"),
    ],
)
def test_every_request_that_sets_a_state_is_listed(header: str, pattern: str, others: str) -> None:
    path = Path("/usr/include") / header
    if not path.exists():
        pytest.skip("the kernel's headers are not installed (linux-libc-dev)")
    known = set(re.findall(pattern, path.read_text(), re.M))
    listed = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", " ".join(row.what for row in ROWS)))
    if not known:
        pytest.skip(f"these headers know no request of {header}")
    assert known - listed - {name for name in known if "GET" in name} == known & globals()[others]


OF_FCNTL = {
    "F_DUPFD", "F_DUPFD_CLOEXEC", "F_DUPFD_QUERY", "F_CREATED_QUERY", "F_CANCELLK", "F_LINUX_SPECIFIC_BASE",
    "F_RDLCK", "F_WRLCK", "F_UNLCK", "F_EXLCK", "F_SHLCK", "F_SETLK64", "F_SETLKW64",
    "F_OWNER_TID", "F_OWNER_PID", "F_OWNER_PGRP",
    "F_SEAL_SEAL", "F_SEAL_SHRINK", "F_SEAL_GROW", "F_SEAL_WRITE", "F_SEAL_FUTURE_WRITE", "F_SEAL_EXEC",
}  # fmt: skip
"""Names of fcntl.h that are no requests, or set no state of their own."""
OF_TERMINALS = {
    "TIOCGPGRP", "TIOCGSID", "TIOCGSERIAL", "TIOCGSOFTCAR", "TIOCGWINSZ", "TIOCGRS485", "TIOCGPTN", "TIOCGDEV",
    "TIOCGPKT", "TIOCGPTLCK", "TIOCGEXCL", "TIOCGPTPEER", "TIOCGISO7816", "TIOCGLCKTRMIOS", "TIOCGICOUNT",
    "TIOCMIWAIT", "TIOCOUTQ", "FIONREAD", "FIOQSIZE", "TIOCSERGWILD", "TIOCSERGSTRUCT",
    "TCSBRK", "TCSBRKP", "TCFLSH", "TIOCSIG", "TIOCLINUX",
}  # fmt: skip
"""What only tells something, or leaves nothing behind."""
OF_SOCKETS = {"SIOCGPGRP", "SIOCATMARK", "SIOCGSTAMP_OLD", "SIOCGSTAMPNS_OLD"}
OF_OTHERS: set[str] = set()
OF_KEYS = {
    "KEYCTL_UPDATE", "KEYCTL_REVOKE", "KEYCTL_CHOWN", "KEYCTL_SETPERM", "KEYCTL_DESCRIBE", "KEYCTL_CLEAR",
    "KEYCTL_LINK", "KEYCTL_UNLINK", "KEYCTL_SEARCH", "KEYCTL_READ", "KEYCTL_INSTANTIATE", "KEYCTL_NEGATE",
    "KEYCTL_SET_TIMEOUT", "KEYCTL_REJECT", "KEYCTL_INSTANTIATE_IOV", "KEYCTL_INVALIDATE", "KEYCTL_DH_COMPUTE",
    "KEYCTL_PKEY_QUERY", "KEYCTL_PKEY_ENCRYPT", "KEYCTL_PKEY_DECRYPT", "KEYCTL_PKEY_SIGN", "KEYCTL_PKEY_VERIFY",
    "KEYCTL_RESTRICT_KEYRING", "KEYCTL_MOVE", "KEYCTL_MOVE_EXCL", "KEYCTL_CAPABILITIES", "KEYCTL_WATCH_KEY",
}  # fmt: skip
"""What is done to keys, which are the user's and the kernel's, and not a process's."""

READ_OR_UNDONE = {
    "PR_CAPBSET_READ", "PR_MCE_KILL_GET", "PR_TASK_PERF_EVENTS_ENABLE", "PR_MPX_DISABLE_MANAGEMENT",
    "PR_PAC_GET_ENABLED_KEYS",
}  # fmt: skip
"""Requests that only tell what another has set, or take it back."""
