"""Images that this host cannot wake, or that nobody wrote: each is refused in words, whatever was changed in it."""

from __future__ import annotations

import dataclasses
import socket
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import torpor
from tests.unit.store.store_content import many_blocks
from torpor.arch.x86_64.xsave import IN_USE_OFFSET, Place
from torpor.errors import ImageDamaged, Reason, RestoreRefused, TorporError
from torpor.image import image_pb2 as pb
from torpor.objects.fds.descriptors import Opened
from torpor.objects.memory.address_space import Sources
from torpor.probe import Probe, probe
from torpor.restorer import validation
from torpor.restorer.capsule import Namespaces, Setting
from torpor.restorer.plan import RestorerFds, make
from torpor.restorer.surroundings import here
from torpor.store.store_pb2 import Envelope
from torpor.util.strict_protobuf import UnknownField, parse


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The image of a shell and its child."""
    store = torpor.Store(tmp_path_factory.mktemp("store"))
    nothing = subprocess.DEVNULL
    with subprocess.Popen(["sh", "-c", "sleep 1000 & wait"], stdin=nothing, stdout=nothing, stderr=nothing) as shell:
        children = Path(f"/proc/{shell.pid}/task/{shell.pid}/children")
        while not children.read_text().split():
            pass
        with store.open(torpor.checkpoint(shell.pid, store=store, then="kill")) as reader:
            return bytes(reader.body)


@pytest.fixture
def image(body: bytes) -> pb.Tree:
    return pb.Tree.FromString(body)


def planned(image: pb.Tree) -> None:
    """All that a restore does before it starts anything, but for opening files."""
    validation.validate(image, "20261123-000000000-aaaaaa", probe(), (0, 1, 2))
    some: defaultdict[int, int] = defaultdict(lambda: 1000)
    held = RestorerFds(Opened(some), Sources(some, some, some, many_blocks()), some, some)
    make(image, here(Setting(Namespaces.PID)), held).explain()


def test_a_sound_image_is_planned(image: pb.Tree) -> None:
    planned(image)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_was_changed_is_told_in_words(body: bytes, data: st.DataObject) -> None:
    changed = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed) - 1))
        changed[at] = data.draw(st.integers(0, 255))
    try:
        image = pb.Tree.FromString(bytes(changed))
    except DecodeError:
        return
    if not image.processes:
        return  # told by the one who parses
    try:
        planned(image)
    except TorporError:
        return


def places(message: Message) -> Iterator[tuple[Message, FieldDescriptor]]:
    """Every field of a message that holds numbers, bytes or text, and of those within it."""
    for field, value in message.ListFields():
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            yield message, field
            continue
        for inner in value if hasattr(value, "append") else [value]:
            yield from places(inner)


NUMBERS = st.one_of(st.integers(0, 8), st.sampled_from([(1 << bits) - 1 for bits in (16, 31, 32, 47, 63, 64)]))


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_a_field_holds_is_told_in_words(body: bytes, data: st.DataObject) -> None:
    image = pb.Tree.FromString(body)
    for _ in range(data.draw(st.integers(1, 3))):
        # Fields with few places, as a process's PID, as often as the many of mappings.
        by_name: dict[str, list[tuple[Message, FieldDescriptor]]] = {}
        for message, field in places(image):
            by_name.setdefault(field.full_name, []).append((message, field))
        message, field = data.draw(st.sampled_from(data.draw(st.sampled_from(list(by_name.values())))))
        value = data.draw(st.binary(max_size=40) if field.cpp_type == FieldDescriptor.CPPTYPE_STRING else NUMBERS)
        try:
            values = getattr(message, field.name)
            if hasattr(values, "append"):
                values[data.draw(st.integers(0, len(values) - 1))] = value
                if data.draw(st.booleans()):
                    del values[0]
            else:
                setattr(message, field.name, value)
        except (ValueError, TypeError, OverflowError):
            return  # no value of this field's type
    try:
        planned(image)
    except TorporError:
        return


def messages_of(message: Message) -> Iterator[Message]:
    """A message, and those within it."""
    yield message
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in value if hasattr(value, "append") else [value]:
                yield from messages_of(inner)


def test_what_a_newer_version_says_is_refused_by_name(body: bytes) -> None:
    """A field that is not known, in a message of each kind: it is never passed over."""
    kinds = {one.DESCRIPTOR.full_name for one in messages_of(pb.Tree.FromString(body))}
    assert len(kinds) > 10
    for kind in kinds:
        image = pb.Tree.FromString(body)
        where = next(one for one in messages_of(image) if one.DESCRIPTOR.full_name == kind)
        where.MergeFromString(b"\xf8\x3f\x01")  # field 1023: 1
        with pytest.raises(UnknownField, match="field 1023 of "):
            parse(pb.Tree, image.SerializeToString())
    parse(pb.Tree, body)


def test_where_an_unknown_field_is_is_told(image: pb.Tree) -> None:
    image.processes[1].memory.vmas[2].MergeFromString(b"\xfa\x3f\x01x")
    with pytest.raises(UnknownField, match=r"^field 1023 of processes\[1\]\.memory\.vmas\[2\]$"):
        parse(pb.Tree, image.SerializeToString())
    with pytest.raises(UnknownField, match=r"^field 1 of Tree$"):
        parse(pb.Tree, b"\x08\x01")  # of another type than it has
    with pytest.raises(UnknownField, match=r"^field 4 of Envelope$"):
        parse(Envelope, b"\x22\x05\x0a\x01k\x18\x01")  # within an entry of a map


def test_a_newer_image_is_not_restored(tmp_path: Path, image: pb.Tree) -> None:
    store = torpor.Store(tmp_path / "store")
    image.host.MergeFromString(b"\xf8\x3f\x01")
    with store.writer("tree") as writer:
        info = writer.publish(image.SerializeToString(), "")
    with pytest.raises(ImageDamaged, match=r"does not know: field 1023 of host.*or a newer one"):
        torpor.restore(info, store=store)


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        (pb.Vma.Kind, lambda image: image.processes[0].memory.vmas, "of a kind that this version does not know"),
        (pb.SharedMemory.Kind, lambda image: image.shared, "memory of a kind that this version does not know"),
        (pb.Lock.Kind, lambda image: image.descriptions[0].locks, "it has invalid locks"),
        (pb.TcpSocket.State, lambda image: [image.descriptions[-1].tcp], "in a state that is not known"),
    ],
)
def test_a_kind_that_is_not_known_is_refused(
    image: pb.Tree, kind: Any, values: Callable[[pb.Tree], Any], words: str
) -> None:
    if kind is pb.SharedMemory.Kind:
        image.shared.add()
    elif kind is pb.Lock.Kind:
        image.descriptions[0].locks.add()
    elif kind is pb.TcpSocket.State:
        image.descriptions.add().tcp.family = socket.AF_INET
    one = values(image)[0]
    field = next(field.name for field in one.DESCRIPTOR.fields if field.enum_type is kind.DESCRIPTOR)
    setattr(one, field, max(kind.values()) + 1)
    with pytest.raises(TorporError) as refused:
        planned(image)
    assert words in f"{refused.value} {getattr(refused.value, 'reasons', '')}"


def reasons(image: pb.Tree, host: Probe) -> Iterator[Reason]:
    with pytest.raises(RestoreRefused) as told:
        validation.validate(image, "20261123-000000000-aaaaaa", host, (0, 1, 2))
    yield from told.value.reasons


def test_a_lesser_processor(image: pb.Tree) -> None:
    host = dataclasses.replace(probe(), cpu_flags=probe().cpu_flags - {"popcnt", "sse4_2"})
    (reason,) = reasons(image, host)
    assert reason.subject == "this processor"
    assert "popcnt, sse4_2" in reason.why


def test_fewer_register_sets(image: pb.Tree) -> None:
    xstate = bytearray(image.processes[0].threads[0].xstate)
    used = Place(*next(place for number, *place in probe().register_sets if number == 2))
    xstate[IN_USE_OFFSET] |= 1 << 2
    xstate[used.offset] = 1
    image.processes[0].threads[0].xstate = bytes(xstate)
    (reason, *_) = reasons(image, dataclasses.replace(probe(), xfeatures=0b11))
    assert reason.why.startswith("it lacks register sets that the program has in use: AVX")


def test_another_architecture(image: pb.Tree) -> None:
    image.host.architecture = "aarch64"
    (reason,) = reasons(image, probe())
    assert reason.why == "the image is for aarch64, and this is x86_64"


def test_everything_at_once(image: pb.Tree) -> None:
    image.files[0].path = b"/nowhere/lib.so"
    image.processes[0].cwd = b"/nowhere"
    host = dataclasses.replace(probe(), map_vdso=False)
    told = {reason.subject for reason in reasons(image, host)}
    assert told == {"the mapped file /nowhere/lib.so", "the directory /nowhere", "this kernel"}


def test_another_build_of_a_library(image: pb.Tree) -> None:
    file = next(file for file in image.files if file.build_id)
    file.build_id = bytes(20)
    (reason,) = reasons(image, probe())
    assert reason.subject == f"the mapped file {file.path.decode()}"
    assert "another build" in reason.why


def test_no_way_to_choose_pids(image: pb.Tree) -> None:
    without = {"can_choose_pids": False, "user_namespaces": False, "lay_out_memory": False}
    host = dataclasses.replace(probe(), **without, why={"user_namespaces": "no"})  # type: ignore[arg-type]
    (reason,) = reasons(image, host)
    assert (reason.why, reason.advice) == ("no capsule can be made here: no", "see `torpor doctor`")


def test_what_passes_by_itself_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    said: list[str] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    causes = [[Reason("a port", "it is held", seconds=7), Reason("another", "it is, too", seconds=3)], []]

    def check() -> str:
        if reasons := causes.pop(0):
            raise RestoreRefused("it cannot be woken", reasons)
        return "sound"

    assert validation.patiently(check, said.append) == "sound"
    assert slept == [7]
    assert said == ["waiting for up to 7 s: a port: it is held"]


@pytest.mark.parametrize(
    "reasons",
    [
        [Reason("a port", "it is held", seconds=7), Reason("a file", "it is gone")],
        [Reason("a port", "it is held", seconds=int(validation._PATIENCE) + 1)],
    ],
)
def test_what_does_not_pass_or_not_soon_is_refused_at_once(reasons: list[Reason]) -> None:
    def check() -> None:
        raise RestoreRefused("it cannot be woken", reasons)

    with pytest.raises(RestoreRefused):
        validation.patiently(check, None)
