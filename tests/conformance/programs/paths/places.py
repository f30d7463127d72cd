"""A program whose files, folders and pipes lie on the mount of their names: it saves a file as everyone does.

rename() and link() compare mounts, so they tell when what was restored lies on another one than a full path does; the
kernel's getcwd() says "(unreachable)" then.
"""

import ctypes
import itertools
import os
import tempfile
from pathlib import Path

from ready import HERE, judge, ready_and_wait, same

SYS_GETCWD = 79


def kernel_cwd() -> bytes:
    """The current directory as the kernel tells it; Python's own way falls back on looking around."""
    buffer = ctypes.create_string_buffer(4096)
    size = ctypes.CDLL(None).syscall(SYS_GETCWD, buffer, len(buffer))
    return buffer.raw[: size - 1]


def mount_of(fd: int) -> str:
    """The number of the mount that a descriptor leads to."""
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith("mnt_id"))


def mount_of_path(path: str) -> str:
    """The number of the mount that a path leads to now."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        return mount_of(fd)
    finally:
        os.close(fd)


def main() -> None:
    folder = HERE / "places"
    folder.mkdir()
    os.chdir(folder)
    os.mkfifo("fifo")
    os.symlink("fifo", "link")
    Path("file").write_text("content")
    full = os.fsencode(folder)
    held = {
        "a directory": os.open(folder, os.O_RDONLY | os.O_DIRECTORY),
        "a name (O_PATH)": os.open(folder, os.O_PATH),
        "a file": os.open("file", os.O_RDWR),
        "a named pipe": os.open("fifo", os.O_RDWR),
        "a device": os.open("/dev/null", os.O_RDWR),
        "/proc": os.open("/proc", os.O_RDONLY | os.O_DIRECTORY),
    }
    master, slave = os.openpty()
    before = kernel_cwd()
    same(before, full, "the kernel's getcwd")
    ready_and_wait()
    same(kernel_cwd(), before, "the kernel's getcwd")
    for what, fd in held.items():
        same(mount_of(fd), mount_of_path(os.readlink(f"/proc/self/fd/{fd}")), f"the mount of {what}")
    same(mount_of(slave), mount_of_path(os.ttyname(slave)), "the mount of a terminal")
    same(mount_of(master), mount_of_path("/dev/ptmx"), "the mount of a terminal's master")
    here = mount_of_path(".")
    same(here, mount_of_path(str(folder)), "the mount of the current directory")

    # Every way to a place with every other.
    directories = {"full": full + b"/%b", "relative": b"%b", "descriptor": b"%b"}
    for (one, first), (other, second) in itertools.product(directories.items(), repeat=2):
        source = held["a directory"] if one == "descriptor" else None
        target = held["a directory"] if other == "descriptor" else None
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as new:
            name = os.path.basename(os.fsencode(new.name))
        os.link(first % name, second % b"linked", src_dir_fd=source, dst_dir_fd=target)
        os.replace(first % name, second % b"model", src_dir_fd=source, dst_dir_fd=target)
        os.unlink("linked")


judge(main)
