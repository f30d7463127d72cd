"""A machine: qemu with a kernel of Debian's, the checkout as it is, and a folder that the guest gets and gives back.

    with TemporaryDirectory() as folder:
        results = boot(KERNELS["6.1"], Path(folder), Job(programs=["pipes.py"]), compiled, seconds=600)

Without KVM programs run 10 to 50 times slower than on the host; the seconds of results are the guest's own. An ordinary
user of the guest does the job.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Timer
from typing import Any

from tests.vm.kernels import BUILD, CHECKOUT, Kernel, checkout_disk, disk, prepare, root_disk, run

PROCESSOR = "Haswell-noTSX,-cx16"
"""A processor of 2013 with AVX2, which qemu 7.2 emulates whole."""
STEADY = ("-icount", "shift=2,sleep=on", "-rtc", "clock=vm")
"""The guest's clock goes by its instructions, 4 ns each: on a busy host nothing is late there."""
QUICK = (
    "console=ttyS0 panic=-1 mitigations=off nokaslr tsc=reliable no_timer_check cryptomgr.notests audit=0 "
    "random.trust_cpu=on quiet"
)


@dataclass(frozen=True)
class Result:
    """How one thing went in a guest."""

    test: str
    good: bool | None
    """None: this kernel does not have what the program tries."""
    words: str
    """What went wrong, or what is to be known besides."""
    seconds: float


@dataclass
class Job:
    """What a guest is to do, in this order."""

    doctor: bool = True
    programs: list[str] = field(default_factory=list)
    """Conformance programs to save and wake here."""
    save: list[str] = field(default_factory=list)
    """Those to save for other machines."""
    wake: list[str] = field(default_factory=list)
    """Names of machines whose images are to be woken: folders of the shared one."""
    scope: int = 0
    """Yama's ptrace_scope. If it is not 0, it is tried what the doctor says of it."""


class MachineFailed(AssertionError):
    """A machine did not come to its end."""


def boot(kernel: Kernel, folder: Path, job: Job, programs: Path, seconds: float) -> Iterator[Result]:
    """Boot a machine that does a job; its results. `programs` has the compiled conformance programs."""
    booted = prepare(kernel)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job").write_text(json.dumps(asdict(job)))
    (folder / "scope").write_text(f"{job.scope}\n")
    (folder / "name").write_text(f"vm-{kernel.name.replace('.', '-')}")
    shutil.copytree(programs, folder / "bin", dirs_exist_ok=True)
    logs = BUILD / "logs" / folder.name
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    with TemporaryDirectory(dir=BUILD) as draft:
        shared = Path(draft) / "shared.ext4"
        kept = folder / "saved"
        kept.mkdir()  # the guest's user may make none: mke2fs gives the root directory to root
        _opened(folder)
        disk(folder, shared, "512M")
        kept.rmdir()  # else debugfs would not copy the guest's
        words = [
            *("qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-cpu", PROCESSOR, "-m", "1536", "-smp", "1"),
            *STEADY,
            *("-display", "none", "-nodefaults", "-no-reboot", "-serial", f"file:{logs}/console"),
            *("-serial", "stdio", "-device", "virtio-rng-pci"),
            *("-kernel", str(booted.kernel), "-initrd", str(booted.initramfs)),
            *("-append", f"{QUICK} torpor.checkout={CHECKOUT}"),
            *_drive(root_disk(), ",snapshot=on"),
            *_drive(checkout_disk(), ",readonly=on"),
            *_drive(shared, ""),
        ]
        status = None
        for told in _told_by(words, logs, seconds):
            if "status" in told:
                status = told["status"]
            else:
                yield Result(**told)
        if status != 0:
            raise MachineFailed(_described(f"{kernel.name} did not finish its job in {seconds:.0f} s", logs))
        run("debugfs", "-R", f"rdump / {folder}", str(shared))


def _told_by(words: Sequence[str], logs: Path, seconds: float) -> Iterator[dict[str, Any]]:
    """What a guest tells, line by line; the last is its status. Then, or when its time is over, it is switched off."""
    with (
        (logs / "qemu").open("wb") as log,
        (logs / "results").open("wb", buffering=0) as results,
        subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log) as machine,
    ):
        assert machine.stdout
        end = Timer(seconds, machine.terminate)
        end.start()
        try:
            for line in machine.stdout:
                results.write(line)
                told = json.loads(line)
                yield told
                if "status" in told:
                    break
        finally:
            end.cancel()
            machine.terminate()


def _drive(image: Path, options: str) -> Sequence[str]:
    return "-drive", f"file={image},format=raw,if=virtio{options}"


def _opened(folder: Path) -> None:
    # For the guest's user.
    folder.chmod(0o777)
    for path in folder.rglob("*"):
        os.chmod(path, 0o777 if path.is_dir() or path.parent.name == "bin" else 0o666)


def _described(what: str, logs: Path) -> str:
    lines = [what]
    for path in sorted(logs.iterdir()):
        lines += [f"-- {path.name}", *path.read_text(errors="replace").splitlines()[-25:]]
    return "\n".join(lines)
