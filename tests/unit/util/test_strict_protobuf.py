"""A field that this version does not know is named, however deep it lies; a known one is no error."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError

from torpor.image import image_pb2 as pb
from torpor.util.strict_protobuf import UnknownField, parse

UNKNOWN = bytes([0xF8, 0x7F, 1])
"""Field 2047, a varint."""


def image() -> pb.Tree:
    tree = pb.Tree()
    tree.processes.add(pid=1)
    tree.processes.add(pid=2).memory.vmas.add(start=3)
    return tree


def test_what_is_known_is_read() -> None:
    assert parse(pb.Tree, image().SerializeToString()) == image()


@pytest.mark.parametrize(
    ("where", "name"),
    [
        (lambda tree: tree, "field 2047 of Tree"),
        (lambda tree: tree.processes[1], "field 2047 of processes[1]"),
        (lambda tree: tree.processes[1].memory.vmas[0], "field 2047 of processes[1].memory.vmas[0]"),
    ],
    ids=["top", "repeated", "deep"],
)
def test_what_is_not_known_is_named(where: object, name: str) -> None:
    assert callable(where)
    tree = image()
    where(tree).MergeFromString(UNKNOWN)
    with pytest.raises(UnknownField) as caught:
        parse(pb.Tree, tree.SerializeToString())
    assert str(caught.value) == name


def test_what_is_no_message_is_no_unknown_field() -> None:
    with pytest.raises(DecodeError) as caught:
        parse(pb.Tree, b"\xff")
    assert not isinstance(caught.value, UnknownField)
