"""Unix sockets whose files are elsewhere than their names say: relative, renamed, linked, removed, another's by now."""

import os
import shutil
import signal
import socket
import tempfile

from ready import HERE, expect, judge, ready_and_wait, same

LONG = "a-directory-with-a-long-name/" * 5


def bound(name: str, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.bind(name)
    if kind != socket.SOCK_DGRAM:
        sock.listen(3)
    return sock


def connection(listener: socket.socket, name: str) -> tuple[socket.socket, socket.socket]:
    client = socket.socket(socket.AF_UNIX)
    client.connect(name)
    return client, listener.accept()[0]


def main() -> None:
    full = f"{HERE}/"
    os.makedirs(LONG)
    os.chdir(LONG)
    far = bound("far")
    os.chdir(HERE)
    here = bound("here")
    up = bound(f"../{HERE.name}/up")
    renamed, linked = bound(full + "renamed.tmp"), bound(full + "linked.tmp")
    os.rename("renamed.tmp", "renamed")
    os.link("linked.tmp", "linked")
    os.unlink("linked.tmp")
    robbed = bound(full + "robbed.tmp")
    os.rename("robbed.tmp", "robbed")
    (HERE / "robbed.tmp").write_text("somebody else's")
    os.mkdir("before")
    inside = bound(full + "before/inside")
    os.rename("before", "after")
    os.mkdir("other")
    away = bound(full + "other/away")
    os.rename("other/away", "away")
    first = bound("taken")
    os.unlink("taken")
    second = bound("taken")
    gone = bound(full + "gone")
    went_with = connection(gone, full + "gone")
    os.unlink("gone")
    closed = bound("closed")
    came_with, alone = connection(closed, "closed"), connection(closed, "closed")
    alone[0].close()
    closed.close()
    os.unlink("closed")
    private, strict = bound("private"), bound(full + "strict")
    mine = connection(strict, full + "strict")
    os.chmod("private", 0)
    os.chmod("strict", 0)
    mailbox, writer = bound("mailbox", socket.SOCK_DGRAM), bound("writer", socket.SOCK_DGRAM)
    writer.connect("mailbox")
    writer.send(b"before")
    if os.geteuid() == 0:
        os.chown("here", 4711, 4712)
    elsewhere = tempfile.mkdtemp(dir="/dev/shm")  # another file system, with a directory that was the current one
    held = os.open(elsewhere, os.O_PATH)
    os.chdir(elsewhere)
    abroad = bound("abroad")
    os.rename("abroad", "moved")
    os.chdir(HERE)
    child = os.fork()  # it stays here, so that relative names can be found
    if child == 0:
        signal.pause()
    os.chdir(LONG)
    everything = [
        far,
        here,
        up,
        renamed,
        linked,
        robbed,
        inside,
        away,
        first,
        second,
        gone,
        private,
        strict,
        mailbox,
        writer,
        abroad,
    ]
    everything += [came_with[1], alone[1], went_with[1], mine[1]]
    names = [one.getsockname() for one in everything]
    peers = [client.getpeername() for client, _ in (came_with, went_with, mine)]
    files = {name: (found.st_mode, found.st_uid, found.st_gid) for name, found in stats().items()}
    ready_and_wait()

    same([one.getsockname() for one in everything], names, "names")
    same([client.getpeername() for client, _ in (came_with, went_with, mine)], peers, "names of the other ends")
    same({name: (found.st_mode, found.st_uid, found.st_gid) for name, found in stats().items()}, files, "files")
    os.chdir(HERE)
    late = ((abroad, f"{elsewhere}/moved"), (robbed, "robbed"), (inside, "after/inside"), (away, "away"))
    for listener, name in (
        (here, "here"),
        (up, "up"),
        (renamed, "renamed"),
        (linked, "linked"),
        (second, "taken"),
        *late,
    ):
        listener.settimeout(100)
        client, server = connection(listener, name)
        client.sendall(b"new")
        same(server.recv(10), b"new", f"a new connection to {name}")
    shutil.rmtree(elsewhere)
    os.close(held)
    os.chdir(LONG)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    connection(far, "far")
    first.setblocking(False)
    try:
        first.accept()
        expect(False, "who has lost its name has a client")
    except BlockingIOError:
        pass
    for near, there in (came_with, went_with, mine):
        near.sendall(b"to and")
        same(there.recv(10), b"to and", "a connection")
        there.sendall(b"fro")
        same(near.recv(10), b"fro", "its other way")
    same(alone[1].recv(10), b"", "a connection whose other end is closed")
    writer.send(b"after")
    same([mailbox.recvfrom(10) for _ in range(2)], [(b"before", "writer"), (b"after", "writer")], "datagrams")


def stats() -> dict[str, os.stat_result]:
    return {path.name: path.lstat() for path in HERE.rglob("*") if path.is_socket()}


judge(main)
