"""What test_threads.py has a user do: two checkpoints and two restores at a time, in two threads of one process.

Each program holds a pattern of its own in its vector registers, and ends when one of them is not what it was.
"""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torpor
from torpor.image.reading import read

T = TypeVar("T")
ROUNDS = 20
PATTERNS = (0x1111111111111111, 0x2222222222222222)
LEGACY_XMM = slice(160, 416)
"""xmm0 to xmm15 in an xsave area."""
PROGRAM = """
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>
static volatile long stop;
static void end(int number) { (void)number; stop = 1; }
int main(int count, char **words)
{
	unsigned long pattern[2] __attribute__((aligned(16)));
	long broken = 0;
	pattern[0] = pattern[1] = strtoul(words[count - 1], NULL, 0);
	signal(SIGUSR1, end);
	write(1, "r", 1);
	__asm__ volatile(
		"movdqu (%1), %%xmm0\\n"
		".irp n, 1,2,3,4,5,6,7,8,9,10,11,12,13,14\\n"
		"movdqa %%xmm0, %%xmm\\\\n\\n"
		".endr\\n"
		"1:\\n"
		".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14\\n"
		"movdqa %%xmm\\\\n, %%xmm15\\n"
		"pcmpeqb (%1), %%xmm15\\n"
		"pmovmskb %%xmm15, %%eax\\n"
		"cmpl $0xffff, %%eax\\n"
		"jne 2f\\n"
		".endr\\n"
		"cmpq $0, %2\\n"
		"je 1b\\n"
		"jmp 3f\\n"
		"2: movq $1, %0\\n"
		"3:\\n"
		: "+m"(broken)
		: "r"(pattern), "m"(stop)
		: "rax", "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
		"xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
	return broken ? 1 : 42;
}
"""


def side_by_side(work: Callable[[int], T]) -> list[T]:
    """Have two threads do the same at the same time."""
    together = threading.Barrier(2)

    def run(which: int) -> T:
        together.wait()
        return work(which)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, range(2)))


def start(pattern: int) -> subprocess.Popen[bytes]:
    program = subprocess.Popen(
        ["./holds", hex(pattern)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert program.stdout
    assert program.stdout.read(1) == b"r"
    return program


def registers(snapshot: torpor.Snapshot) -> bytes:
    with torpor.Store("store").open(snapshot) as reader:
        return bytes(read(reader).processes[0].threads[0].xstate[LEGACY_XMM])


def main() -> None:
    Path("holds.c").write_text(PROGRAM)
    subprocess.run(["gcc", "-O1", "-msse2", "-o", "holds", "holds.c"], check=True)
    programs = [start(pattern) for pattern in PATTERNS]

    def save(which: int, then: str = "run") -> torpor.Snapshot:
        return torpor.checkpoint(programs[which].pid, store="store", then=then)  # type: ignore[arg-type]

    for _ in range(ROUNDS):
        for snapshot, pattern in zip(side_by_side(save), PATTERNS, strict=True):
            found = registers(snapshot)[:240]
            assert found == pattern.to_bytes(8, "little") * 30, f"{pattern:#x}: {found.hex()}"
    snapshots = side_by_side(lambda which: save(which, "kill"))
    for program in programs:
        program.wait()
    for last in (False, False, False, True):
        jobs = side_by_side(lambda which: torpor.restore(snapshots[which]))
        for which, job in enumerate(jobs):
            if last:
                job.send_signal(signal.SIGUSR1)
                assert job.wait() == 42, "its registers are not what they were"
            else:
                snapshots[which] = torpor.checkpoint(job.pid, store="store", then="kill")
                job.wait()
    print("done")


main()
