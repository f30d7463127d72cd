"""Messages of an encoded image are counted without being built."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from torpor.image import counting
from torpor.image import image_pb2 as pb

NUMBERS = st.sampled_from([0, 1, 127, 128, 300, (1 << 31) - 1])


@st.composite
def trees(draw: st.DrawFn) -> tuple[pb.Tree, int]:
    """Images, and how many messages are in each."""
    image, count = pb.Tree(), 0
    for _ in range(draw(st.integers(0, 4))):
        process = image.processes.add(pid=draw(NUMBERS), cwd=draw(st.binary(max_size=200)))
        count += 1
        for _ in range(draw(st.integers(0, 3))):
            process.threads.add(tid=draw(NUMBERS), name=draw(st.binary(max_size=5)))
            count += 1
        if draw(st.booleans()):
            process.memory.SetInParent()  # an empty message is one, too
            count += 1
            for _ in range(draw(st.integers(0, 3))):
                process.memory.vmas.add(start=draw(NUMBERS))
                count += 1
    return image, count


@given(trees())
def test_as_many_are_counted_as_there_are(drawn: tuple[pb.Tree, int]) -> None:
    image, count = drawn
    data = image.SerializeToString()
    for most in (count, count + 1, 1 << 20):
        assert counting.count(data, pb.Tree, most) == count
    if count:
        assert counting.count(data, pb.Tree, count - 1) == count, "one more than was asked for"


@given(trees())
def test_what_is_cut_is_no_message(drawn: tuple[pb.Tree, int]) -> None:
    """Wherever it is cut: it is told, or what is left is another whole message."""
    image, _ = drawn
    data = image.SerializeToString()
    for end in range(len(data)):
        try:
            counted = counting.count(data[:end], pb.Tree, 1 << 20)
        except DecodeError:
            continue
        assert counted == _count(pb.Tree.FromString(data[:end]))


def _count(image: pb.Tree) -> int:
    inside = sum(len(one.threads) + one.HasField("memory") + len(one.memory.vmas) for one in image.processes)
    return len(image.processes) + inside


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x08", "ends within a number"),
        (b"\x08" + b"\x80" * 9 + b"\x01", ""),
        (b"\x08" + b"\x80" * 10 + b"\x01", "more than ten bytes"),
        (b"\x09" + bytes(8), ""),
        (b"\x09" + bytes(7), "ends within a field"),
        (b"\x0d" + bytes(4), ""),
        (b"\x0d" + bytes(3), "ends within a field"),
        (b"\x0b", "groups"),
        (b"\x0f", "groups"),
    ],
)
def test_each_kind_of_field_has_its_length(data: bytes, words: str) -> None:
    if not words:
        assert counting.count(data, pb.Tree, 9) == 0
        return
    with pytest.raises(DecodeError, match=words):
        counting.count(data, pb.Tree, 9)
