"""Descriptors that send signals when they are ready: to a process, a thread, a group; SIGIO, or one that was chosen."""

import fcntl
import os
import pty
import signal
import socket
import struct
import threading
from typing import Any

from ready import GO, HERE, judge, ready_and_wait, same

F_SETSIG, F_GETSIG, F_SETOWN_EX, F_GETOWN_EX = 10, 11, 15, 16
O_ASYNC = 0o20000
THREAD, PROCESS, GROUP = 0, 1, 2
CHOSEN, TYPED = signal.SIGRTMIN + 3, signal.SIGRTMIN + 4
HEARD = {signal.SIGIO, signal.SIGURG, CHOSEN, TYPED}


def owned(fd: int, kind: int, pid: int, number: int = 0) -> int:
    fcntl.fcntl(fd, F_SETOWN_EX, struct.pack("ii", kind, pid))
    fcntl.fcntl(fd, F_SETSIG, number)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | O_ASYNC)
    return fd


def seen(fd: int) -> tuple[Any, ...]:
    owner = struct.unpack("ii", fcntl.fcntl(fd, F_GETOWN_EX, bytes(8)))
    return owner, fcntl.fcntl(fd, F_GETSIG), fcntl.fcntl(fd, fcntl.F_GETFL)


def forget() -> None:
    while signal.sigtimedwait(HEARD - {signal.SIGIO}, 0):
        pass


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
    me, group = os.getpid(), os.getpgrp()
    left, right = socket.socketpair()
    reader, writer = os.pipe()
    master, slave = pty.openpty()
    os.mkfifo(HERE / "fifo")
    fifo = os.open(HERE / "fifo", os.O_RDWR)
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    server = listener.accept()[0]
    server.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    fcntl.fcntl(server, fcntl.F_SETOWN, me)  # SIGURG, without O_ASYNC
    child = os.fork()
    if child == 0:
        signal.sigwait({CHOSEN})
        os._exit(7)
    gone = os.fork()
    if gone == 0:
        os._exit(0)
    silent, speaker = socket.socketpair()
    owned(silent.fileno(), PROCESS, gone)
    os.waitpid(gone, 0)
    told: list[int] = []
    asked = threading.Event()

    def hear() -> None:
        told.append(threading.get_native_id())
        asked.set()
        told.append(signal.sigwaitinfo({signal.SIGIO}).si_signo)

    thread = threading.Thread(target=hear)
    thread.start()
    asked.wait()
    owned(left.fileno(), PROCESS, me, CHOSEN)
    owned(reader, THREAD, told[0])
    owned(slave, PROCESS, me, TYPED)
    owned(fifo, GROUP, group, CHOSEN)
    to_child, of_child = socket.socketpair()
    owned(of_child.fileno(), PROCESS, child, CHOSEN)
    everything = [left.fileno(), reader, slave, fifo, server.fileno(), of_child.fileno(), silent.fileno()]
    before = [seen(fd) for fd in everything]
    forget()
    ready_and_wait()

    same([seen(fd) for fd in everything], before, "owners")
    same(signal.sigpending() & (HEARD | {GO}), set(), "signals that nobody sent")
    right.send(b"x")
    info = signal.sigwaitinfo({CHOSEN})
    same((info.si_signo, info.si_band & 1), (CHOSEN, 1), "the signal of a socket")
    forget()
    os.write(master, b"x\n")
    same(signal.sigtimedwait({TYPED}, 20) is not None, True, "the signal of a terminal")
    client.send(b"!", socket.MSG_OOB)
    same(signal.sigtimedwait({signal.SIGURG}, 20) is not None, True, "the signal of urgent data")
    forget()
    os.write(writer, b"x")
    thread.join(20)
    same(told[1:], [signal.SIGIO], "what the thread heard")
    to_child.send(b"x")
    same(os.waitpid(child, 0), (child, 7 << 8), "the child")
    os.write(fifo, b"x")
    same(signal.sigtimedwait({CHOSEN}, 20) is not None, True, "the signal of a group")
    forget()
    speaker.send(b"x")
    same(signal.sigpending() & {signal.SIGIO}, set(), "signals for one that has ended")


judge(main)
