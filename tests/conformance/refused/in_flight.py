"""What lies in unix sockets and cannot be sent again: each is named, and stays where it is."""

import os
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "programs"))

from ready import HERE, judge, ready_and_wait, same


def main() -> None:
    here, there = socket.socketpair()
    pidfd = os.pidfd_open(os.getpid())
    socket.send_fds(here, [b"a process"], [pidfd])
    os.close(pidfd)
    near, far = socket.socketpair()
    status = os.open("/proc/self/status", os.O_RDONLY)
    socket.send_fds(near, [b"its state"], [status])

    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    sender.send(b"signed")

    mailbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    mailbox.bind(str(HERE / "mailbox"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as writer:
        writer.bind(str(HERE / "writer"))
        writer.sendto(b"letter", str(HERE / "mailbox"))
    urgent, patient = socket.socketpair()
    try:
        urgent.send(b"!", socket.MSG_OOB)
        numbers = [patient.fileno()]
    except OSError:  # a kernel without (CONFIG_AF_UNIX_OOB)
        numbers = []
    numbers += [there.fileno(), far.fileno(), receiver.fileno(), mailbox.fileno()]
    (HERE / "numbers").write_text(" ".join(map(str, numbers)))
    ready_and_wait()

    message, (pidfd,), _, _ = socket.recv_fds(there, 100, 1)
    same((message, os.readlink(f"/proc/self/fd/{pidfd}")[:12]), (b"a process", "anon_inode:["), "a pidfd")
    if len(numbers) > 4:
        same(patient.recv(1, socket.MSG_OOB), b"!", "urgent data")
    message, (copy,), _, _ = socket.recv_fds(far, 100, 1)
    same((message, os.path.samestat(os.fstat(copy), os.fstat(status))), (b"its state", True), "a file of /proc")
    message, control, _, _ = receiver.recvmsg(100, 100)
    same((message, len(control)), (b"signed", 1), "a message with credentials")
    same(mailbox.recvfrom(100), (b"letter", str(HERE / "writer")), "a letter of one who has gone")


judge(main)
