"""`make vm`: what works on which kernel, tried in machines; KERNELS=... chooses some.

Each machine runs the doctor and conformance programs, as an ordinary user, and saves some of them; then each wakes what
the others have saved. The tables go to docs/hosts.md by hand, once they are as they should be.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tests.conformance.building import HERE as CONFORMANCE
from tests.conformance.building import build, named
from tests.vm.guest import YAMA
from tests.vm.kernels import BUILD, KERNELS, Kernel, checkout_disk, prepare, root_disk
from tests.vm.machine import Job, MachineFailed, Result, boot

PROGRAMS = (
    *("actions.c", "clocks.c", "epoll.c", "forked.c", "guards.c", "membarrier.c", "memfd_runs.c", "memory.c"),
    *("message_queues.c", "pending.c", "private_memory.c", "registers.c", "rseq.c", "semaphores.c", "sessions.c"),
    *(
        "shared.c",
        "signal_frames.c",
        "static.c",
        "stopped.c",
        "system_v.c",
        "threads.c",
        "timers.c",
        "thread_attributes.c",
    ),
    *("waits.c", "zombie.c", "asyncio_py.py", "eventfds.py", "fifos.py", "files.py", "locked_files.py", "pipes.py"),
    *("places.py", "ptys.py", "shell.sh", "tcp.py", "threading_py.py", "tree.py", "udp.py", "unix_names.py"),
    "watchers.py",
)
"""One or more for each kind of kernel object."""
ACROSS = ("memory.c", "registers.c", "signal_frames.c", "threads.c", "timers.c", "files.py", "pipes.py", "shell.sh")
"""What is saved on each kernel and woken on each other one."""
BIN = BUILD / "bin"
"""The compiled programs."""
HOUR = 3600.0
WORDS = {True: "yes", False: "**no**", None: "not there"}
"""How it went."""


def compile_all() -> None:
    """Compile the programs that are in C, and their launcher."""
    BIN.mkdir(parents=True, exist_ok=True)
    build(CONFORMANCE / "launch.c", BIN)
    for name in {*PROGRAMS, *ACROSS}:
        if name.endswith(".c"):
            build(named(name), BIN)


def played(kernel: Kernel, job: Job, folder: Path, seconds: float = 2 * HOUR) -> list[Result]:
    """The results of a machine; one that broke off is a result, too."""
    results: list[Result] = []
    try:
        for result in boot(kernel, folder, job, BIN, seconds):
            _show(kernel, result)
            results.append(result)
    except MachineFailed as failure:
        results.append(Result("machine", False, str(failure), seconds))
        _show(kernel, results[-1])
    return results


def _show(kernel: Kernel, result: Result) -> None:
    why = f": {result.words}\n" if result.good is False else ""
    print(f"{kernel.name}: {result.test} {WORDS[result.good]} ({result.seconds:.0f} s){why}", flush=True)


def save(kernel: Kernel, images: Path) -> list[Result]:
    """Run the programs on a kernel, and save some."""
    folder = images / kernel.name
    shutil.rmtree(folder, ignore_errors=True)
    return played(kernel, Job(programs=list(PROGRAMS), save=list(ACROSS)), folder)


def under_yama(kernel: Kernel, images: Path) -> list[Result]:
    """Try each ptrace_scope, each in a machine of its own: the strictest lasts until the next boot."""
    results: list[Result] = []
    for scope in YAMA:
        folder = images / f"{kernel.name}-scope-{scope}"
        shutil.rmtree(folder, ignore_errors=True)
        results += played(kernel, Job(scope=scope), folder, HOUR)
    return results


def wake(kernel: Kernel, images: Path, others: Sequence[Kernel]) -> list[Result]:
    """Wake on a kernel what others have saved."""
    folder = images / f"on-{kernel.name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    there = [one.name for one in others if any((images / one.name / "saved").glob("*"))]
    for name in there:
        shutil.copytree(images / name / "saved", folder / name)
    return played(kernel, Job(doctor=False, wake=there), folder)


def table(rows: dict[str, dict[str, Result]], columns: Sequence[str]) -> Iterator[str]:
    """Markdown: a row for each test, a column for each kernel."""
    yield f"| | {' | '.join(columns)} |"
    yield f"|---{'|---' * len(columns)}|"
    for name, results in rows.items():
        yield f"| {name} | {' | '.join(WORDS[one.good] if one else '-' for one in map(results.get, columns))} |"


def main(names: Sequence[str]) -> int:
    """Play all of it; 1 if anything went wrong on a kernel whose doctor is content."""
    kernels = [KERNELS[name] for name in names or KERNELS]
    root_disk()
    checkout_disk()
    compile_all()
    for kernel in kernels:
        print(f"{kernel.name}: {prepare(kernel).release}", flush=True)
    images = BUILD / "images"
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        saved = dict(zip(kernels, pool.map(partial(save, images=images), kernels), strict=True))
        for kernel in kernels[:1]:
            saved[kernel] += under_yama(kernel, images)
        able = [kernel for kernel, results in saved.items() if results[0].good]
        wakes = pool.map(lambda kernel: wake(kernel, images, [one for one in able if one != kernel]), able)
        woken = dict(zip(able, wakes, strict=True))
    rows: dict[str, dict[str, Result]] = {}
    for results in (saved, woken):
        for kernel, told in results.items():
            for one in told:
                rows.setdefault(one.test, {})[kernel.name] = one
    print("\n".join(table(rows, [kernel.name for kernel in kernels])))
    return int(any(one.good is False for kernel in able for one in (*saved[kernel], *woken[kernel])))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
