from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Hello(_message.Message):
    __slots__ = ("part", "parts", "host")
    PART_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    part: int
    parts: int
    host: str
    def __init__(self, part: _Optional[int] = ..., parts: _Optional[int] = ..., host: _Optional[str] = ...) -> None: ...

class Words(_message.Message):
    __slots__ = ("step", "mine")
    STEP_FIELD_NUMBER: _ClassVar[int]
    MINE_FIELD_NUMBER: _ClassVar[int]
    step: str
    mine: bytes
    def __init__(self, step: _Optional[str] = ..., mine: _Optional[bytes] = ...) -> None: ...

class All(_message.Message):
    __slots__ = ("step", "words", "failed")
    STEP_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    step: str
    words: _containers.RepeatedScalarFieldContainer[bytes]
    failed: str
    def __init__(self, step: _Optional[str] = ..., words: _Optional[_Iterable[bytes]] = ..., failed: _Optional[str] = ...) -> None: ...
