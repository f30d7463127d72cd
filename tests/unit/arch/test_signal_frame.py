"""The signal frame by which a thread returns to itself, where the kernel reads it (sigcontext.h, ucontext.h)."""

from __future__ import annotations

import struct
from array import array

from torpor.arch import x86_64
from torpor.arch.x86_64 import MIN_XSAVE, XCR0_OFFSET, signal_frame, signal_frame_size
from torpor.arch.x86_64.signal_frame import holds_tiles
from torpor.arch.x86_64.xsave import size_here

X87_AND_SSE, TILES = 0b11, 1 << 18
AT = 0x7000


def xstate(features: int, in_use: int, size: int = MIN_XSAVE) -> bytes:
    area = bytearray(b"\1" * 400 + bytes(size - 400))
    struct.pack_into("<Q", area, XCR0_OFFSET, features)
    struct.pack_into("<Q", area, 512, in_use)
    return bytes(area)


def registers() -> array[int]:
    words = array("Q", range(100, 100 + x86_64.REGISTER_COUNT))
    words[x86_64.ORIG_RAX] = x86_64.WORD  # in no system call
    return words


def test_registers_and_mask_lie_where_the_kernel_reads_them() -> None:
    words = registers()
    frame = signal_frame(AT, words, xstate(X87_AND_SSE, X87_AND_SSE), 0xABC)
    context = struct.unpack_from("<18Q", frame, 40)  # after flags, link and the alternate stack: sigcontext_64
    assert context[0] == words[x86_64.R8] and context[8] == words[x86_64.RDI]
    assert context[15:17] == (words[x86_64.RSP], words[x86_64.RIP])
    (fpstate,) = struct.unpack_from("<Q", frame, 40 + 18 * 8 + 8 + 4 * 8)
    (mask,) = struct.unpack_from("<Q", frame, 40 + 18 * 8 + 8 + 4 * 8 + 8 + 64)
    assert mask == 0xABC
    area = frame[fpstate - AT :]
    assert fpstate % 64 == 0 and area[:400] == b"\1" * 400
    magic, whole, features, size = struct.unpack_from("<IIQI", area, XCR0_OFFSET)
    assert (magic, features, whole) == (0x46505853, X87_AND_SSE, size + 4)
    assert area[size:] == struct.pack("<I", 0x46505845)
    assert len(frame) <= signal_frame_size(MIN_XSAVE)


def test_a_call_that_was_interrupted_is_made_again() -> None:
    words = registers()
    words[x86_64.ORIG_RAX], words[x86_64.RAX] = 39, -512 & x86_64.WORD
    frame = signal_frame(AT, words, xstate(X87_AND_SSE, X87_AND_SSE), 0)
    context = struct.unpack_from("<18Q", frame, 40)
    assert (context[13], context[16]) == (39, words[x86_64.RIP] - 2)


def test_tiles_are_restored_only_by_a_thread_that_uses_them() -> None:
    size = size_here(X87_AND_SSE | TILES)
    for in_use in (X87_AND_SSE, X87_AND_SSE | TILES):
        state = xstate(X87_AND_SSE | TILES, in_use, max(size, MIN_XSAVE))
        assert holds_tiles(state) == bool(in_use & TILES)
        frame = signal_frame(AT, registers(), state, 0)
        (fpstate,) = struct.unpack_from("<Q", frame, 40 + 18 * 8 + 8 + 4 * 8)
        (features,) = struct.unpack_from("<Q", frame, fpstate - AT + XCR0_OFFSET + 8)
        assert features == in_use
