"""A child of a few instructions, without any library: it has no code to return from a signal with."""

import os
import subprocess
from pathlib import Path

from ready import HERE, judge, ready_and_wait, same

CODE = """
.globl _start
_start: subq $16, %rsp
	movl $0x1234567, %ebx
	xorl %eax, %eax
	xorl %edi, %edi
	movq %rsp, %rsi
	movl $1, %edx
	syscall
	cmpq $1, %rax
	jne 1f
	cmpl $0x1234567, %ebx
	jne 1f
	movzbl (%rsp), %edi
1:	movl $60, %eax
	syscall
"""


def vdso(pid: int) -> bytes:
    """The code of a process's vDSO."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    start, end = (int(word, 16) for word in next(line for line in lines if "[vdso]" in line).split()[0].split("-"))
    with open(f"/proc/{pid}/mem", "rb") as file:
        file.seek(start)
        return file.read(end - start)


def main() -> None:
    source, program = Path(HERE) / "bare.S", Path(HERE) / "bare"
    source.write_text(CODE)
    subprocess.run(["gcc", "-nostdlib", "-static", "-o", program, source], check=True)
    reader, writer = os.pipe()
    child = os.posix_spawn(
        program, ["bare"], {}, file_actions=[(os.POSIX_SPAWN_DUP2, reader, 0), (os.POSIX_SPAWN_CLOSE, writer)]
    )
    os.close(reader)
    ready_and_wait()
    same(vdso(child), vdso(os.getpid()), "the child's vDSO")
    os.write(writer, b"\x2a")
    same(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 42, "the child's exit code")


judge(main)
