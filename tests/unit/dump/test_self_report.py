"""What frozen processes report: how it is asked for. That it is right, conformance programs show under a filter."""

from __future__ import annotations

import dataclasses
import os
import socket
import struct
from types import SimpleNamespace
from typing import Any

import pytest

from torpor.arch.x86_64 import NR
from torpor.dump import self_report
from torpor.errors import Refused
from torpor.objects.process import seccomp
from torpor.probe import probe

FRAME = struct.Struct("<QQ QQ QQ Q")
"""struct msghdr: name, its length, struct iovec, how many, control messages, their length, flags."""


def taken(umask: int) -> Any:
    return SimpleNamespace(pid=os.getpid(), texts=SimpleNamespace(status={b"Umask": b"%04o" % umask}))


@pytest.mark.parametrize("lacks", ["kcmp", "pidfd_getfd"])
def test_reports_are_asked_for_where_a_call_is_denied(monkeypatch: pytest.MonkeyPatch, lacks: str) -> None:
    for module in (self_report, seccomp):
        monkeypatch.setattr(module, "probe", lambda: dataclasses.replace(probe(), kcmp=True, pidfd_getfd=True))
    assert not self_report.is_needed()
    with self_report.reported([]):  # nobody is asked
        assert NR.sendmsg not in seccomp.made()
    lesser = dataclasses.replace(probe(), kcmp=lacks != "kcmp", pidfd_getfd=lacks != "pidfd_getfd")
    for module in (self_report, seccomp):
        monkeypatch.setattr(module, "probe", lambda: lesser)
    assert self_report.is_needed()
    asked = self_report._Reporter(taken(0o22), 0o22, 0o1, [0, 1, 2])
    assert seccomp.made().issuperset(self_report._batch(asked, b"\0name").numbers())


def test_each_process_gets_a_umask_that_none_has() -> None:
    reporters = self_report._reporters([taken(0o22), taken(0), taken(1), taken(0o22)])
    assert [one.umask for one in reporters] == [0o22, 0, 1, 0o22]
    assert [one.mark for one in reporters] == [2, 3, 4, 5]
    assert {0, 1, 2} <= set(reporters[0].numbers)
    with pytest.raises(Refused, match="512 processes cannot be compared at once"):
        self_report._reporters([taken(0o22)] * 512)


def test_descriptors_are_sent_as_the_kernel_takes_them() -> None:
    content, pointers = self_report._message([3, 5, 8])
    name, _, iov, count, control, size, flags = FRAME.unpack_from(content)
    assert (name, count, flags) == (0, 1, 0)
    assert pointers == (16, 32, iov)
    base, length = struct.unpack_from("<QQ", content, iov)
    assert length == 1 and iov + 16 <= base < control
    assert struct.unpack_from("<Qii3i", content, control) == (size, socket.SOL_SOCKET, socket.SCM_RIGHTS, 3, 5, 8)
    assert len(content) == control + size
    assert control % 8 == 0


def test_many_descriptors_go_in_several_messages() -> None:
    asked = self_report._Reporter(taken(0), 0, 1, [*range(600)])
    assert [len(numbers) for numbers in asked.messages] == [250, 250, 100]
    numbers = self_report._batch(asked, b"\0name").numbers()
    assert (numbers.count(NR.sendmsg), numbers[-1]) == (3, NR.close)
