"""What test_elsewhere.py has a user do: wakes a program from an image whose registers lie as on an AMD processor.

Runs as its own process, as the user whose rights are tested. Prints "done".
"""

from __future__ import annotations

import signal
import subprocess
import sys
from unittest import mock

import torpor
from torpor.arch.x86_64 import xsave
from torpor.image import image_pb2 as pb
from torpor.image import reading
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


def main() -> None:
    """Save, end and wake it; it must go on."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    job = subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.DEVNULL)
    info = torpor.checkpoint(job.pid, store="store", then="kill")
    job.wait()
    with mock.patch.object(reading, "read", as_on_amd):
        woken = torpor.restore(info, prove=True)
    woken.send_signal(signal.SIGUSR1)
    assert woken.wait() == 0
    print("done")


main()
