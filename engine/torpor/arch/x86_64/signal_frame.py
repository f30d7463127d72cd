"""The frame from which rt_sigreturn(2) restores a thread's whole context."""

from __future__ import annotations

import struct
from array import array

from torpor.arch.x86_64.registers import (
    CS,
    EFLAGS,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
    RAX,
    RBP,
    RBX,
    RCX,
    RDI,
    RDX,
    RIP,
    RSI,
    RSP,
    SS,
    restarted,
)  # fmt: skip
from torpor.arch.x86_64.xsave import IN_USE_OFFSET, TILES, XCR0_OFFSET, size_here

# Signal frame (arch/x86/include/uapi/asm/sigcontext.h, ucontext.h).
_FP_XSTATE_MAGIC1 = 0x46505853
_FP_XSTATE_MAGIC2 = 0x46505845
_SW_RESERVED = XCR0_OFFSET  # offset of struct _fpx_sw_bytes in the xsave area
_XTILE_DATA = 1 << TILES
_UC_FLAGS = 0x1 | 0x2 | 0x4  # UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS
_UCONTEXT = struct.Struct("<QQ QiiQ 18Q 4H 4Q Q64x Q")
_NO_ALTSTACK = 7
"""Not a valid mode of sigaltstack: rt_sigreturn ignores it and leaves the thread's alternate stack as it is."""


TOUCH_TILES = b"\xc4\xc2\x78\x49\x06\xc4\xe2\x7b\x49\xc0\xcc"
"""``ldtilecfg (%r14); tilezero %tmm0; int3``. The kernel allocates room for AMX tiles when a thread first uses one;
before that it accepts no tiles from a tracer (arch/x86/kernel/fpu/xstate.c, xfd_enable_feature).
"""
TILE_CONFIGURATION = struct.pack("<BB14x H30x B15x", 1, 0, 64, 16)
"""For TOUCH_TILES: palette 1, tile 0 with 16 rows of 64 bytes."""


def holds_tiles(xstate: bytes) -> bool:
    """Whether an xsave area holds AMX tiles."""
    return bool(struct.unpack_from("<Q", xstate, IN_USE_OFFSET)[0] & _XTILE_DATA)


def signal_frame(address: int, registers: array[int], xstate: bytes, sigmask: int) -> bytes:
    """The frame from which rt_sigreturn, called with rsp = `address`, restores these registers, xsave area and mask.

    `address` must be 64-byte aligned. The alternate stack does not change.
    """
    r = restarted(registers)
    size = len(xstate)
    fpstate = address + _aligned(_UCONTEXT.size)
    context = _UCONTEXT.pack(
        _UC_FLAGS, 0, 0, _NO_ALTSTACK, 0, 0,
        r[R8], r[R9], r[R10], r[R11], r[R12], r[R13], r[R14], r[R15],
        r[RDI], r[RSI], r[RBP], r[RBX], r[RDX], r[RAX], r[RCX], r[RSP], r[RIP], r[EFLAGS],
        r[CS], 0, 0, r[SS],
        0, 0, 0, 0,
        fpstate,
        sigmask,
    )  # fmt: skip
    features, size = _features_in_use(xstate)
    area = bytearray(xstate[:size])
    area[_SW_RESERVED:512] = struct.pack("<IIQI28x", _FP_XSTATE_MAGIC1, size + 4, features, size)
    return context.ljust(_aligned(len(context)), b"\0") + area + struct.pack("<I", _FP_XSTATE_MAGIC2)


def _features_in_use(xstate: bytes) -> tuple[int, int]:
    """The components to restore from an xsave area, and the bytes that they take.

    ptrace returns the area in its largest size, AMX tiles included. If a signal frame is larger than the task may use,
    the kernel restores only x87 and SSE from it (fpu/signal.c, check_xstate_in_sigframe), and a task that never asked
    for AMX may not use tiles.
    """
    features: int = struct.unpack_from("<Q", xstate, XCR0_OFFSET)[0]
    in_use: int = struct.unpack_from("<Q", xstate, IN_USE_OFFSET)[0]
    if not in_use & _XTILE_DATA:
        features &= ~_XTILE_DATA
    return features, min(size_here(features), len(xstate))


def signal_frame_size(xstate_size: int) -> int:
    """Size of a `signal_frame` in bytes, rounded up to 64."""
    return _aligned(_aligned(_UCONTEXT.size) + xstate_size + 4)


def _aligned(size: int) -> int:
    return (size + 63) & ~63
