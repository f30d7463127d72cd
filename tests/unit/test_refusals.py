"""Images that this host cannot wake, or that nobody wrote: each is refused in words, whatever was changed in it."""

from __future__ import annotations

import dataclasses
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import torpor
from torpor import refusals
from torpor.capsule import Namespaces, Setting
from torpor.errors import Reason, RestoreRefused, TorporError
from torpor.image import image_pb2 as pb
from torpor.objects.address_space import Sources
from torpor.objects.descriptors import Opened
from torpor.plan import Held, make
from torpor.probe import Probe, probe
from torpor.restore import _here
from torpor.store import BlockTable


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


def blocks() -> BlockTable:
    """More blocks than a small image names."""
    table = BlockTable()
    for row in range(1000):
        table.offsets.append((row + 1) << 16)
        table.lengths.append(1 << 16)
        table.packs.append(0)
    return table


def planned(image: pb.Tree) -> None:
    """All that a restore does before it starts anything, but for opening files."""
    refusals.refuse(image, "20261123-000000000-aaaaaa", probe(), (0, 1, 2))
    some: defaultdict[int, int] = defaultdict(lambda: 1000)
    paths: defaultdict[bytes, int] = defaultdict(lambda: 1001)
    held = Held(Opened(some), Sources(some, some, some, blocks()), paths)
    make(image, _here(Setting(Namespaces.PID)), held).explain()


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


def reasons(image: pb.Tree, host: Probe) -> Iterator[Reason]:
    with pytest.raises(RestoreRefused) as told:
        refusals.refuse(image, "20261123-000000000-aaaaaa", host, (0, 1, 2))
    yield from told.value.reasons


def test_a_lesser_processor(image: pb.Tree) -> None:
    host = dataclasses.replace(probe(), cpu_flags=probe().cpu_flags - {"popcnt", "sse4_2"})
    (reason,) = reasons(image, host)
    assert reason.subject == "this processor"
    assert "popcnt, sse4_2" in reason.why


def test_fewer_register_sets(image: pb.Tree) -> None:
    image.host.xfeatures |= 1 << 40
    (reason,) = reasons(image, probe())
    assert "register sets" in reason.why


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
    host = dataclasses.replace(probe(), capabilities=frozenset(), user_namespaces=False, why={"user_namespaces": "no"})
    (reason,) = reasons(image, host)
    assert (reason.why, reason.advice) == ("no", "see `torpor doctor`")
