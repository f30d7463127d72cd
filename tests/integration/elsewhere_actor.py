"""What test_elsewhere.py has a user do: wakes programs from images as other processors would have given them.

Runs as its own process, as the user whose rights are tested. Prints "done".
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from unittest import mock

import torpor
from torpor.arch.x86_64 import xsave
from torpor.image import image_pb2 as pb
from torpor.image import reading
from torpor.objects.process import host_requirements
from torpor.processes import portable_environment
from torpor.store import SnapshotReader

READ = reading.read
PROGRAM = """
import signal, sys
x = 1 / 3  # in a register, or in memory that one is loaded from
signal.sigwait({signal.SIGUSR1})
sys.exit(0 if x * 3 == 1.0 else 1)
"""


def as_on_amd(reader: SnapshotReader) -> pb.Tree:
    """The image, as a checkpoint on a Zen 4 had written it."""
    image = READ(reader)
    host = image.host
    here = {one.number: xsave.Place(one.offset, one.size) for one in host.register_sets}
    there = {number: place for number, place in xsave.ZEN_4.items() if number in here}
    features = 0b11 | sum(1 << number for number in there)
    total = xsave.size(features, there)
    for thread in (thread for process in image.processes for thread in process.threads):
        thread.xstate = xsave.converted(thread.xstate, here, there, features, total)
    host.xfeatures, host.xsave_size = features, total
    del host.register_sets[:]
    for number, place in there.items():
        host.register_sets.add(number=number, offset=place.offset, size=place.size)
    return image


def saved(environment: dict[str, str]) -> torpor.SnapshotInfo:
    """A program that was started with an environment, saved and ended."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    job = subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.DEVNULL, env=environment)
    info = torpor.checkpoint(job.pid, store="store", then="kill")
    job.wait()
    return info


def ends_well(woken: torpor.Job) -> None:
    """It goes on where it was, and is content."""
    woken.send_signal(signal.SIGUSR1)
    assert woken.wait() == 0


def registers() -> None:
    """Registers move to the layout of this processor."""
    info = saved(dict(os.environ))
    with mock.patch.object(reading, "read", as_on_amd):
        ends_well(torpor.restore(info, prove=True))


def of_a_larger_processor(reader: SnapshotReader) -> pb.Tree:
    """The image, as a checkpoint on a processor with a feature that none has had it."""
    image = READ(reader)
    image.host.cpu_flags.append("avx512_of_tomorrow")
    return image


def features() -> None:
    """A feature that is missing here is a reason to refuse, unless it is ignored, or the job keeps to a level."""
    any_code, portable = saved(dict(os.environ)), saved(portable_environment("x86-64-v2", os.environ))
    tomorrow = host_requirements.CODE_FLAGS | {"avx512_of_tomorrow"}
    with (
        mock.patch.object(reading, "read", of_a_larger_processor),
        mock.patch.object(host_requirements, "CODE_FLAGS", tomorrow),
    ):
        try:
            torpor.restore(any_code)
        except torpor.errors.RestoreRefused as refused:
            (reason,) = refused.reasons
            assert "lacks avx512_of_tomorrow, by which " in reason.why and "libc.so" in reason.why, reason
        else:
            raise AssertionError("it was not refused")
        woken = torpor.restore(any_code, cpu="ignore")
        ends_well(woken)
        assert any("avx512_of_tomorrow" in words and "SIGILL" in words for words in woken.warnings), woken.warnings
        woken = torpor.restore(portable, prove=True)
        ends_well(woken)
        assert not any("libc.so" in words for words in woken.warnings), woken.warnings


{"registers": registers, "features": features}[sys.argv[1]]()
print("done")
