"""Strict reading of protobuf messages: a field that this version does not know is an error that names the field.

Protobuf itself ignores unknown fields silently, and a restore would go on as if they did not exist.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

M = TypeVar("M", bound=Message)


class UnknownField(DecodeError):
    """A message has a field that this version does not know; the text names the field and its message."""


def parse(kind: type[M], data: bytes) -> M:
    """Parse a message. Raises DecodeError, or UnknownField if the message or one within it has an unknown field.

    Protobuf treats a map entry of an unexpected form as an unknown field of the message that has the map.
    """
    message = kind.FromString(data)
    size = message.ByteSize()
    message.DiscardUnknownFields()
    # This takes two passes in C. The search for the unknown field, in Python, happens only if there is one.
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
