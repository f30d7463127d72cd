"""Count the messages of an encoded image before it is parsed: a message of two bytes becomes an object of hundreds.

Only messages that can contain messages are walked; other fields are skipped by their length. The wire format is
protobuf's (https://protobuf.dev/programming-guides/encoding/).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from google.protobuf.message import DecodeError, Message

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


def count(data: bytes, kind: type[Message], most: int) -> int:
    """Count the messages within an encoded message, but stop after `most`.

    Args:
        data: the encoded message.
        kind: its type.
        most: the result is larger than this if there are more.

    Raises:
        DecodeError: the data is not an encoded message.
    """
    total = 0
    waiting = [(0, len(data), kind.DESCRIPTOR)]
    try:
        while waiting and total <= most:
            at, end, of = waiting.pop()
            inner = _inner(of)
            while at < end:
                tag, at = _varint(data, at)
                wire = tag & 7
                if wire == _LENGTH:
                    size, at = _varint(data, at)
                    if (found := inner.get(tag >> 3)) is not None:
                        total += 1
                        if total > most:
                            break
                        if size and _inner(found):
                            waiting.append((at, at + size, found))
                    at += size
                elif wire == _VARINT:
                    _, at = _varint(data, at)
                elif wire in (_FIXED64, _FIXED32):
                    at += 8 if wire == _FIXED64 else 4
                else:
                    raise DecodeError("it has groups, which no image has")
            if at > end and total <= most:
                raise DecodeError("it ends within a field")
    except IndexError as error:
        raise DecodeError("it ends within a number") from error
    return total


@cache
def _inner(kind: Any) -> Mapping[int, Any]:
    """Return the message types of the fields that hold messages, by field number."""
    return {field.number: field.message_type for field in kind.fields if field.message_type is not None}


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Decode a number; return it and the offset behind it."""
    value = data[at]
    at += 1
    if value < 0x80:
        return value, at
    value, shift = value & 0x7F, 7
    while shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise DecodeError("it has a number of more than ten bytes")
