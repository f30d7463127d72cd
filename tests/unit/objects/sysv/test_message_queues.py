"""The calls by which init makes System V message queues, and what of an image cannot be made."""

from __future__ import annotations

import os
import struct

import pytest

from torpor.arch.x86_64 import NR
from torpor.image import image_pb2 as pb
from torpor.objects.sysv import message_queues
from torpor.objects.sysv.belonging import create
from torpor.remote.batch import Call


def status_of(call: Call) -> bytes:
    (status,) = (one for one in call.args if isinstance(one, bytes))
    return status


def test_an_object_gets_its_id_and_may_be_filled_at_first() -> None:
    calls = list(create("msg", 70, NR.msgget, (5,), 0o1440, "it"))
    assert [call.nr for call in calls] == [NR.open, NR.write, NR.close, NR.msgget]
    assert calls[0].args[0] == b"/proc/sys/kernel/msg_next_id\0" and calls[1].args[1] == b"70"
    assert calls[3].args == (5, 0o1000 | 0o2000 | 0o640) and calls[3].expect == 70


def test_a_queue_is_filled_before_it_gets_its_rights() -> None:
    queue = pb.MessageQueue(id=3, key=7, uid=12, gid=13, mode=0o400, size=1 << 20)
    queue.messages.add(type=9, content=b"text")
    *_, made, larger, sent, owned = message_queues.make(queue, owner=True)
    assert [one.nr for one in (made, larger, sent, owned)] == [NR.msgget, NR.msgctl, NR.msgsnd, NR.msgctl]
    assert sent.args[:3] == (3, struct.pack("<q", 9) + b"text", 4)
    assert struct.unpack_from("<iIIIII", status_of(owned)) == (7, 12, 13, 0, 0, 0o400)
    *_, owned = message_queues.make(queue, owner=False)
    assert struct.unpack_from("<iII", status_of(owned)) == (7, os.geteuid(), os.getegid())


def test_only_queues_above_the_default_raise_the_namespaces_limit() -> None:
    image = pb.Tree(queues=[pb.MessageQueue(size=message_queues.DEFAULT_SIZE)])
    assert list(message_queues.enlarge(image)) == []
    image.queues.add(size=100_000)
    assert [call.args[1] for call in message_queues.enlarge(image) if call.nr == NR.write] == [b"100000"]


@pytest.mark.parametrize(("kind", "size", "wrong"), [(1, 1 << 31, False), (0, 1, True), (1, (1 << 31) + 1, True)])
def test_a_queue_that_cannot_be(kind: int, size: int, wrong: bool) -> None:
    queue = pb.MessageQueue(size=size, messages=[pb.MessageQueue.Message(type=kind)])
    assert bool(list(message_queues.validate_form(queue))) == wrong
