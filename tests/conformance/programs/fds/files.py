"""Open files: positions, flags, descriptions shared by dup and fork, close-on-exec, directories, devices."""

import fcntl
import os
import signal
from pathlib import Path

from ready import HERE, await_go, expect, judge, ready, same

LINES = b"".join(b"line %d\n" % number for number in range(1000))


def flags(fd: int) -> tuple[int, int]:
    return fcntl.fcntl(fd, fcntl.F_GETFL), fcntl.fcntl(fd, fcntl.F_GETFD)


def child(shared: int) -> int:
    """Fork one that reads on in a description it shares with its parent, when told."""
    pid = os.fork()
    if pid == 0:
        signal.sigwait({signal.SIGUSR1})
        os._exit(0 if os.read(shared, 7) == LINES[700:707] else 1)
    return pid


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    path = HERE / "file"
    path.write_bytes(LINES)
    reader = os.open(path, os.O_RDONLY)
    os.lseek(reader, 500, os.SEEK_SET)
    copy = os.dup2(reader, 77, inheritable=True)
    second = os.open(path, os.O_RDONLY | os.O_NOATIME | os.O_NONBLOCK)
    appender = os.open(HERE / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
    os.write(appender, b"before\n")
    writer = os.open(HERE / "written", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.write(writer, b"0123456789")
    os.lseek(writer, 4, os.SEEK_SET)
    far = os.open(HERE / "sparse", os.O_RDWR | os.O_CREAT)
    os.lseek(far, 5_000_000_000, os.SEEK_SET)
    odd = HERE / "strange \n näme"
    odd.write_text("odd")
    strange = os.open(odd, os.O_RDONLY)
    library = open("/usr/lib/os-release" if Path("/usr/lib/os-release").exists() else "/etc/passwd", "rb")  # noqa: SIM115
    first_line = library.readline()
    by_path = os.open(path, os.O_PATH)

    folder = HERE / "folder"
    folder.mkdir()
    for number in range(20):
        (folder / f"entry {number}").write_text("")
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    for plainly in (os.O_RDONLY, os.O_PATH):
        os.open(folder, plainly)
    scan = os.scandir(folder)
    listed = [next(scan).name for _ in range(5)]

    devices = {name: os.open(f"/dev/{name}", os.O_RDWR) for name in ("null", "zero", "full")}
    devices["urandom"] = os.open("/dev/urandom", os.O_RDONLY)
    devices["random"] = os.open("/dev/random", os.O_RDONLY)

    shared = os.open(path, os.O_RDONLY)
    os.lseek(shared, 700, os.SEEK_SET)
    pid = child(shared)
    before = {fd: flags(fd) for fd in map(int, os.listdir("/proc/self/fd")) if Path(f"/proc/self/fd/{fd}").exists()}
    ready((os.getpid(), 128), (pid, 128))
    await_go()

    for fd, was in before.items():
        same(flags(fd), was, f"flags of descriptor {fd}")
    same(os.lseek(copy, 0, os.SEEK_CUR), 500, "position through a duplicate")
    os.lseek(copy, 600, os.SEEK_SET)
    same(os.read(reader, 7), LINES[600:607], "what a duplicate positioned")
    same(os.read(second, 6), LINES[:6], "an independent description of the same file")
    with open(HERE / "log", "ab") as other:
        other.write(b"another writer\n")
    os.write(appender, b"after\n")
    same((HERE / "log").read_text(), "before\nanother writer\nafter\n", "an appended file")
    os.write(writer, b"XY")
    same((HERE / "written").read_bytes(), b"0123XY6789", "a written file")
    same(os.lseek(far, 0, os.SEEK_CUR), 5_000_000_000, "a position beyond 4 GiB")
    same(os.read(strange, 10), b"odd", "a file with a strange name")
    library.seek(0)
    same(library.readline(), first_line, "a file of the system")
    same(os.fstat(by_path).st_ino, path.stat().st_ino, "an O_PATH descriptor")
    same(sorted([*listed, *(entry.name for entry in scan)]), sorted(p.name for p in folder.iterdir()), "directory scan")
    same(sorted(os.listdir(directory)), sorted(p.name for p in folder.iterdir()), "directory")
    os.fchdir(directory)
    same(os.getcwd(), str(folder), "fchdir")
    same(os.read(devices["null"], 1), b"", "/dev/null")
    same(os.read(devices["zero"], 3), b"\0\0\0", "/dev/zero")
    same(len(os.read(devices["urandom"], 8)), 8, "/dev/urandom")
    same(len(os.read(devices["random"], 8)), 8, "/dev/random")
    try:
        os.write(devices["full"], b"x")
        expect(False, "/dev/full took something")
    except OSError as error:
        same(os.strerror(error.errno), "No space left on device", "/dev/full")
    os.kill(pid, signal.SIGUSR1)
    same(os.waitpid(pid, 0), (pid, 0), "the child that shares a description")
    same(os.lseek(shared, 0, os.SEEK_CUR), 707, "the position that the child moved")


judge(main)
