"""Code that takes the place of a vDSO's functions: a jump to another vDSO's, or what has the same result.

Documented in: Intel's manual, volume 2; syscall(2) and vdso(7) on registers; lib/vdso/getrandom.c.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from torpor.arch.x86_64.system_calls import NR

_JUMP = struct.Struct("<Bi")  # jmp rel32
_JUMP_OPCODE = 0xE9
JUMP_SIZE = _JUMP.size
JUMP_REACH = 1 << 31
"""How far a jump can lead, in bytes."""
ANSWER_ENOSYS = b"\x48\xc7\xc0\xda\xff\xff\xff\xc3"
"""mov $-38, %rax; ret"""
_UNLESS_FIFTH_IS_MINUS_ONE = b"\x49\x83\xf8\xff\x74\x08"
"""cmp $-1, %r8; je to what follows the next 8 bytes"""


def jump(distance: int) -> bytes:
    """A jump; the distance counts from the jump's end."""
    return _JUMP.pack(_JUMP_OPCODE, distance)


def _system_call(nr: int) -> bytes:
    """mov $nr, %eax; syscall; ret: the arguments, three at most, are in the same registers."""
    return b"\xb8" + struct.pack("<I", nr) + b"\x0f\x05\xc3"


INSTEAD: Mapping[str, bytes] = {
    "__vdso_clock_gettime": _system_call(NR.clock_gettime),
    "__vdso_clock_getres": _system_call(NR.clock_getres),
    "__vdso_gettimeofday": _system_call(NR.gettimeofday),
    "__vdso_time": _system_call(NR.time),
    "__vdso_getcpu": _system_call(NR.getcpu),
    # Its first three arguments are those of getrandom(2). If the fifth is -1, it is to say how large a state the caller
    # shall keep for it: it has none.
    "__vdso_getrandom": _UNLESS_FIFTH_IS_MINUS_ONE + _system_call(NR.getrandom) + ANSWER_ENOSYS,
    # It returns 0 or a negative error. An enclave itself is a mapping of a device, which no image has.
    "__vdso_sgx_enter_enclave": ANSWER_ENOSYS,
}
"""Code with the same result as functions that a kernel's vDSO may lack."""
