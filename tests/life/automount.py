"""A host that mounts and unmounts while a job lives, on demand too, by an automounter of its own. It takes root.

As a script, `automount.py PLACE SOURCE`: mounts autofs on PLACE, says so in a line, and binds SOURCE to PLACE/data when
somebody asks for that.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

# include/uapi/linux/auto_fs.h
MISSING_INDIRECT = 3
READY = 0x9360
FAIL = 0x9361
PACKET = struct.Struct("=iiIIQIIIII")
"""Version of the protocol, type, token, device, inode, uid, gid, pid, tgid, length of the name that follows."""


class Host:
    """Directories on a mount that passes on what is mounted below it, as those of a host that systemd has started."""

    def __init__(self, place: Path) -> None:
        self.place = place
        for name in ("data", "auto", "early", "late"):
            (place / name).mkdir()
        (place / "data/file").write_text("what is mounted\n")
        self._bind("early")

    def change(self) -> None:
        """Unmount what was mounted before the job began, and mount something else."""
        subprocess.run(["umount", self.place / "early"], check=True)
        self._bind("late")

    def expire(self) -> None:
        """Unmount what was mounted on demand. Its directory stays to be seen, so that a look at it mounts nothing."""
        subprocess.run(["umount", self.place / "auto/data"], check=True)

    def _bind(self, name: str) -> None:
        subprocess.run(["mount", "--bind", self.place / "data", self.place / name], check=True)


def is_possible() -> bool:
    """Whether this kernel has autofs."""
    return "autofs" in Path("/proc/filesystems").read_text().split()


@contextmanager
def host(place: Path) -> Iterator[Host]:
    """Such a host at an empty directory, with an automounter at `auto` where that is possible; gone afterwards."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "host", place], check=True)
    try:
        subprocess.run(["mount", "--make-shared", place], check=True)
        made = Host(place)
        with _automounter(place) if is_possible() else nullcontext():
            yield made
    finally:
        subprocess.run(["umount", "--recursive", "--lazy", place], check=True)


@contextmanager
def _automounter(place: Path) -> Iterator[None]:
    command = [sys.executable, __file__, str(place / "auto"), str(place / "data")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as automounter:
        assert automounter.stdout
        try:
            assert automounter.stdout.readline() == b"mounted\n"
            yield
        finally:
            automounter.kill()


def serve(place: str, source: str) -> None:
    """Mount on demand, until killed."""
    asked, kernel = os.pipe()
    options = f"fd={kernel},pgrp={os.getpgrp()},minproto=5,maxproto=5,indirect"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"automount", os.fsencode(place), b"autofs", 0, options.encode()):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), place)
    top = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    print("mounted", flush=True)
    while packet := os.read(asked, 4096):
        _, kind, token, *_, length = PACKET.unpack_from(packet)
        name = packet[PACKET.size :][:length]
        wanted = kind == MISSING_INDIRECT and name == b"data"
        if wanted:
            os.makedirs(f"{place}/data", exist_ok=True)
            subprocess.run(["mount", "--bind", source, f"{place}/data"], check=True)
        fcntl.ioctl(top, READY if wanted else FAIL, token)


if __name__ == "__main__":
    serve(*sys.argv[1:])
