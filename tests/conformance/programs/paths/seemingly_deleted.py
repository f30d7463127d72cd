"""Names that end in " (deleted)", which is what the kernel puts after those that are gone: none of these is."""

import os
import shutil
import socket
from typing import Any

from ready import HERE, judge, ready_and_wait, same

SUFFIX = " (deleted)"


def exchanged(fd: int, what: bytes) -> bytes:
    os.write(fd, what)
    return os.read(fd, len(what))


def main() -> None:
    there = HERE / f"there{SUFFIX}"
    there.mkdir()
    (HERE / "there").mkdir()
    os.chdir(there)
    folder = os.open(there, os.O_RDONLY | os.O_DIRECTORY)
    fifo_name = HERE / f"fifo{SUFFIX}"
    os.mkfifo(fifo_name)
    fifo = os.open(fifo_name, os.O_RDWR)
    gone_name = HERE / f"gone{SUFFIX}"
    os.mkfifo(gone_name)
    gone = os.open(gone_name, os.O_RDWR)
    os.unlink(gone_name)
    listeners = []
    for name in (str(HERE / f"socket{SUFFIX}"), f"relative{SUFFIX}"):
        listeners.append(socket.socket(socket.AF_UNIX))
        listeners[-1].bind(name)
        listeners[-1].listen()
    moved = socket.socket(socket.AF_UNIX)
    moved.bind(str(HERE / "before"))
    moved.listen()
    os.rename(HERE / "before", HERE / f"moved{SUFFIX}")
    program = HERE / f"program{SUFFIX}"
    shutil.copy("/bin/cat", program)
    ours, its, back, out = *os.pipe(), *os.pipe()
    child = os.fork()
    if not child:
        os.dup2(ours, 0)
        os.dup2(out, 1)
        os.execv(program, ["cat"])
    for fd in (ours, out):
        os.close(fd)

    def links() -> dict[str, Any]:
        own = {str(fd): os.readlink(f"/proc/self/fd/{fd}") for fd in (folder, fifo, gone)}
        return {"cwd": os.getcwd(), "exe": os.readlink(f"/proc/{child}/exe"), **own}

    def connects() -> list[bytes]:
        names = [HERE / f"socket{SUFFIX}", there / f"relative{SUFFIX}", HERE / f"moved{SUFFIX}"]
        said = []
        for name, listener in zip(names, [*listeners, moved], strict=True):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(name))
                with listener.accept()[0] as server:
                    client.send(b"hello")
                    said.append(server.recv(10))
        return said

    os.write(its, b"x")
    same(os.read(back, 1), b"x", "the child, before")
    before = links()
    same(connects(), [b"hello"] * 3, "listeners, before")
    ready_and_wait()
    same(links(), before, "what /proc tells")
    same(connects(), [b"hello"] * 3, "listeners")
    same(os.path.samestat(os.stat("."), os.stat(there)), True, "the current directory is the one with that name")
    same(os.path.samestat(os.fstat(folder), os.stat(there)), True, "so is the open one")
    same(os.path.samestat(os.fstat(fifo), os.stat(fifo_name)), True, "the named pipe is the one with that name")
    same((exchanged(fifo, b"one"), exchanged(gone, b"other")), (b"one", b"other"), "what goes through named pipes")
    same(os.fstat(gone).st_nlink, 0, "names of the pipe that has none")
    os.write(its, b"again")
    same(os.read(back, 5), b"again", "what the child says")
    os.close(its)
    same(os.waitpid(child, 0), (child, 0), "the child")


judge(main)
