"""Labels of security modules: what this machine may not have is given."""

from __future__ import annotations

import errno
import os

import pytest

from torpor import procfs
from torpor.image.image_pb2 import Tree
from torpor.objects.process import security_labels

SELINUX = b"unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023\0"


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (b"unconfined\n", ""),
        (b"torpor (unconfined)\n", ""),
        (b"/usr/bin/man (enforce)\n", "/usr/bin/man (enforce)"),
        (SELINUX, SELINUX[:-1].decode()),
        (b"_", "_"),
        (b"", ""),
        (b"a\x1b[2J\xff", "a\x1b[2J\\xff"),
    ],
)
def test_what_confines_is_a_label(text: bytes, label: str) -> None:
    assert security_labels.shown(text) == label


def told(monkeypatch: pytest.MonkeyPatch, by_path: dict[str, bytes | OSError]) -> None:
    def read(path: str) -> bytes:
        found = by_path[path]
        if isinstance(found, OSError):
            raise found
        return found

    monkeypatch.setattr(procfs, "read", read)


def test_a_process_or_thread_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    paths: dict[str, bytes | OSError] = {"/proc/7/attr/current": b"one\n", "/proc/7/task/8/attr/current": b"two\n"}
    told(monkeypatch, paths)
    assert (security_labels.of(7), security_labels.of(7, 8)) == ("one", "two")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EACCES])
def test_where_no_module_has_labels_there_is_none(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    told(monkeypatch, {"/proc/self/attr/current": OSError(number, "")})
    assert security_labels.of("self") == ""


def test_who_has_ended_has_no_label(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = os.fork()
    if gone == 0:
        os._exit(0)
    os.waitpid(gone, 0)
    with pytest.raises((FileNotFoundError, ProcessLookupError)):
        security_labels.of(gone)
    # A kernel without security modules has no such file of a process that lives.
    told(monkeypatch, {"/proc/self/attr/current": FileNotFoundError(errno.ENOENT, "")})
    assert security_labels.of("self") == ""


def test_another_label_within_a_tree_is_refused() -> None:
    assert not list(security_labels.unsupported("process 7 (man)", "x_t", "x_t"))
    (reason,) = security_labels.unsupported("process 7 (man)", "/usr/bin/man (enforce)", "")
    assert str(reason).startswith("process 7 (man): its security label is '/usr/bin/man (enforce)'")
    assert "that of the tree's root none" in reason.why


def test_another_label_of_who_saves_or_wakes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Tree()
    image.host.label = "batch_t"
    told(monkeypatch, {"/proc/self/attr/current": b"batch_t"})
    assert not list(security_labels.notices("batch_t")) and not list(security_labels.warnings(image))
    told(monkeypatch, {"/proc/self/attr/current": b"user_t"})
    assert "a wake from here gives it 'user_t'" in next(security_labels.notices("batch_t"))
    assert "what it does may be denied now" in next(security_labels.warnings(image))
    told(monkeypatch, {"/proc/self/attr/current": b"unconfined"})
    assert "it may do what was denied before" in next(security_labels.warnings(image))
