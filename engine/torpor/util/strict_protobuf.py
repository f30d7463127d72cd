"""Protobuf messages are read strictly: what a newer version wrote, and this one does not know, is refused by name.

Protobuf itself keeps unknown fields aside in silence, and a restore would go on as if they had not been there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

M = TypeVar("M", bound=Message)


class UnknownField(DecodeError):
    """A message says something that this version does not know; the text tells which field of what it is."""


def parse(kind: type[M], data: bytes) -> M:
    """Parse a message. Raises DecodeError, and UnknownField when it or one within it has a field that is not known.

    An entry of a map that is not as this version writes them is, to protobuf, an unknown field of what has the map.
    """
    message = kind.FromString(data)
    size = message.ByteSize()
    message.DiscardUnknownFields()
    # Two passes in C: where unknown fields are is looked for only when there are some.
    if message.ByteSize() != size:
        raise UnknownField(next(_unknown(kind.FromString(data), "")))
    return message


def _unknown(message: Message, where: str) -> Iterator[str]:
    unknown = UnknownFieldSet(message)
    for index in range(len(unknown)):
        yield f"field {unknown[index].field_number} of {where or message.DESCRIPTOR.name}"
    for field, value in message.ListFields():
        name = f"{where}.{field.name}" if where else field.name
        if isinstance(value, Message):
            yield from _unknown(value, name)
        elif field.type == FieldDescriptor.TYPE_MESSAGE and isinstance(value, Sequence):
            for number, inner in enumerate(value):
                yield from _unknown(inner, f"{name}[{number}]")
