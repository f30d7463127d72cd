"""A part of a process asked and set in children of ours, which make the calls of a dump and of a restore."""

from __future__ import annotations

import ctypes
import os
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from torpor.image import image_pb2 as pb
from torpor.objects.part import Answers, ProcessPart, Stage
from torpor.objects.process import texts
from torpor.remote.batch import _ENTRY, ENTRY_SIZE, Batch, Call, Replies
from torpor.remote.children import forked
from torpor.remote.sys import try_syscall

_ROOM = 1 << 16


def described(part: ProcessPart[Any, Any], before: Callable[[], object]) -> pb.Process:
    """What a part says of a child that has done something."""

    def act() -> pb.Process:
        before()
        return _describe(part)

    return _in_child(act)


def restored(
    part: ProcessPart[Any, Any], process: pb.Process, before: Callable[[], object] = lambda: None
) -> pb.Process:
    """What a part says of another child, in which it was set as in an image."""

    def act() -> pb.Process:
        before()
        mine = pb.Process()
        mine.CopyFrom(process)
        mine.pid = os.getpid()
        for stage, call in part.calls(mine, part.host()):
            if stage != Stage.RELEASE:
                make(call)
        return _describe(part)

    return _in_child(act)


def make(call: Call) -> None:
    """Make a call of a plan in this process; its result must be the one that the plan has."""
    done = try_syscall(call.nr, *(bytearray(one) if isinstance(one, bytes) else one for one in call.args))  # type: ignore[arg-type]
    assert call.expect is None or done == call.expect, f"{call.words}: {done}"


def replies(batch: Batch) -> Replies:
    """The results of a table of calls, made here one after the other."""
    memory = ctypes.create_string_buffer(_ROOM)
    address = ctypes.addressof(memory)
    table = batch.encode(address)
    assert len(table) <= _ROOM
    ctypes.memmove(memory, bytes(table), len(table))
    for at in range(0, len(batch) * ENTRY_SIZE, ENTRY_SIZE):
        nr, flags, _, _, *words, _ = _ENTRY.unpack_from(memory, at)
        assert not flags, "the calls of these parts do not depend on one another"
        ctypes.c_int64.from_buffer(memory, at + 56).value = try_syscall(nr, *words)
    return Replies(batch, memory.raw)


def answers(texts_of: texts.Texts, batch: Batch, pending: Iterable[bytes] = ()) -> Answers:
    """What a part is told whose calls are made here."""
    return Answers(texts_of, replies(batch), list(pending), {os.getpid(): os.getpid()})


def _describe(part: ProcessPart[Any, Any]) -> pb.Process:
    batch, read = Batch(), texts.grab(os.getpid())
    asked = part.ask(batch, read)
    out = pb.Process()
    part.describe(asked, answers(read, batch), out)
    return out


def _in_child(act: Callable[[], pb.Process]) -> pb.Process:
    reader, writer = os.pipe()

    def tell() -> None:
        try:
            os.write(writer, act().SerializeToString())
        except BaseException:
            os.write(writer, traceback.format_exc().encode())
            raise

    child = forked(tell)
    os.close(writer)
    with open(reader, "rb") as file:
        told = file.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, told.decode()
    return pb.Process.FromString(told)
