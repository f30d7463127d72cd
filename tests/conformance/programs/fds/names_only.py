"""Names that are open with O_PATH: of links, devices, a named pipe, sockets and a file."""

import fcntl
import os
import socket
import stat

from ready import HERE, expect, judge, ready_and_wait, same


def main() -> None:
    os.symlink("nowhere", HERE / "broken")
    os.symlink(".", HERE / "here")
    os.mkfifo(HERE / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(HERE / "socket"))
    own = socket.socket(socket.AF_UNIX)
    own.bind(str(HERE / "own"))
    own.listen()
    (HERE / "file").write_text("file")
    names = ("broken", "here", "pipe", "socket", "own")
    held = {name: os.open(HERE / name, os.O_PATH | os.O_NOFOLLOW) for name in names}
    held |= {name: os.open(name, os.O_PATH) for name in ("/dev/null", HERE / "file")}
    near, far = socket.socketpair()
    moved = socket.socket(socket.AF_UNIX)
    moved.bind(str(HERE / "was"))
    moved.listen()
    os.rename(HERE / "was", HERE / "is")
    sent = [os.open(HERE / name, os.O_PATH | os.O_NOFOLLOW) for name in ("own", "is", "socket")]
    socket.send_fds(near, [b"."], [*sent, moved.fileno()])
    for fd in (*sent, moved.detach()):
        os.close(fd)
    flags = {fd: fcntl.fcntl(fd, fcntl.F_GETFL) for fd in held.values()}
    ready_and_wait()

    same({fd: fcntl.fcntl(fd, fcntl.F_GETFL) for fd in flags}, flags, "the flags")
    same(os.readlink("", dir_fd=held["broken"]), "nowhere", "a link that leads nowhere")
    same(os.readlink("", dir_fd=held["here"]), ".", "a link to a directory")
    expect(stat.S_ISFIFO(os.fstat(held["pipe"]).st_mode), "a named pipe")
    expect(stat.S_ISSOCK(os.fstat(held["socket"]).st_mode), "a socket")
    for name, fd in held.items():
        expect(os.path.samestat(os.lstat(HERE / name), os.fstat(fd)), f"{name} is another one")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"/proc/self/fd/{held['own']}")
        own.accept()
    _, (of_own, of_moved, of_dead, listening), _, _ = socket.recv_fds(far, 1, 4)
    for name, fd in (("own", of_own), ("is", of_moved), ("socket", of_dead)):
        expect(os.path.samestat(os.lstat(HERE / name), os.fstat(fd)), f"{name}, which was sent, is another one")
    with socket.socket(socket.AF_UNIX) as client, socket.socket(fileno=listening) as moved:
        client.connect(f"/proc/self/fd/{of_moved}")
        moved.accept()
    with open(f"/proc/self/fd/{held['/dev/null']}", "w") as sink:
        sink.write("nothing")
    with open(f"/proc/self/fd/{held[HERE / 'file']}") as file:
        same(file.read(), "file", "a file that is opened by its name")


judge(main)
