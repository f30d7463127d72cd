"""Images are not trusted: whatever one says, it is refused in words, and nothing is left open or changed."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.leaks import no_more_descriptors
from tests.unit.objects.fds.descriptor_tree import holder, no_memory
from torpor.errors import TorporError
from torpor.image.image_pb2 import SharedMemory, Tree
from torpor.objects.fds import descriptors

NUMBERS = [0, 1, 2, 3, 6, 7, 10, 255, 262, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 64) - 1]
BYTES = [b"", b"\0", b"/", b"relative", b"/proc/self/mem", b"/dev/null", b"\2\0" + bytes(14), bytes(28), b"x" * 300]


@cache
def real() -> bytes:
    """An image with one of each kind."""
    with holder(
        """
os.open("/etc/passwd", os.O_RDONLY); os.open("/", os.O_RDONLY); os.open("/dev/zero", os.O_RDONLY)
r, w = os.pipe(); os.write(w, b"x")
n = syscall(NR.eventfd2, 3, 0)
e = select.epoll(); e.register(r); e.register(n)
a, b = socket.socketpair(); a.send(b"x")
l = socket.create_server(("127.0.0.1", 0)); c = socket.create_connection(l.getsockname()); s, _ = l.accept()
o = socket.create_server(("127.0.0.1", 0)); d = socket.create_connection(o.getsockname())
u = socket.socket(type=socket.SOCK_DGRAM); u.bind(("127.0.0.1", 0)); u.connect(u.getsockname())
v = socket.socket(socket.AF_UNIX); v.bind(b"\\0torpor-test-%d" % os.getpid()); v.listen()
t = syscall(NR.timerfd_create, 1, 0); os.pidfd_open(os.getpid())
b = ctypes.create_string_buffer(8); f = syscall(NR.signalfd4, -1 & (1 << 32) - 1, ctypes.addressof(b), 8, 0)
e.register(f); g, h = os.openpty(); i = syscall(NR.inotify_init1, 0); p = ctypes.create_string_buffer(b"/")
syscall(NR.inotify_add_watch, i, ctypes.addressof(p), 0x400)
y, z = socket.socketpair(); y.send(b"x"); socket.send_fds(y, [b"x"], [r, n]); k = os.open("/etc/passwd", os.O_RDONLY)
socket.send_fds(y, [b"x"], [k]); os.close(k)
w = socket.socket(socket.AF_UNIX); w.connect(v.getsockname())
m, q = [socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in "mq"]
m.bind(b"\\0torpor-test-m%d" % os.getpid()); q.bind(b"\\0torpor-test-q%d" % os.getpid())
m.sendto(b"x", q.getsockname()); socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"y", q.getsockname())
u.send(b"x"); u.setsockopt(0, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("239.77.3.9") + socket.inet_aton("127.0.0.1"))
ready()
wait()
"""
    ) as tree:
        tree.ready()
        image = tree.dump()
        descriptors.arm_reset(descriptors.grab(tree.pids))
    return image.SerializeToString()


def scalars(message: Message) -> list[tuple[Message, FieldDescriptor]]:
    """Every field of a number or of bytes in a message and in those below it."""
    found = []
    for field, value in message.ListFields():
        if field.message_type is None:
            found.append((message, field))
            continue
        for below in value if field.is_repeated else [value]:
            found += scalars(below)
    return found


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_an_image_that_was_tampered_with_is_refused_in_words(data: st.DataObject) -> None:
    image = Tree()
    image.ParseFromString(real())
    for _ in range(data.draw(st.integers(1, 3))):
        message, field = data.draw(st.sampled_from(scalars(image)))
        is_bytes = field.type in (FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_STRING)
        value = data.draw(st.sampled_from(BYTES if is_bytes else NUMBERS))
        try:
            if field.is_repeated:
                getattr(message, field.name).append(value)
            else:
                setattr(message, field.name, value)
        except (ValueError, TypeError, OverflowError):
            continue  # not a value that the wire could hold
    with no_more_descriptors():
        if descriptors.validate(image) == []:
            with suppress(TorporError):
                descriptors.open_all(image, no_memory).close()


def test_a_description_of_an_unknown_kind_is_refused() -> None:
    image = Tree()
    image.descriptions.add(flags=os.O_RDWR)
    (reason,) = descriptors.validate(image)
    assert "of a kind that this version does not know" in reason.why


def test_the_restorers_own_memory_is_no_file(tmp_path: Path) -> None:
    image = Tree()
    image.descriptions.add(flags=os.O_RDWR).file.path = b"/proc/self/mem"
    image.descriptions.add(flags=os.O_RDWR).file.path = os.fsencode(os.path.relpath(tmp_path))
    assert ["no file has such a name" in reason.why for reason in descriptors.validate(image)] == [True, True]


def test_ends_that_do_not_fit_together_are_refused() -> None:
    image = Tree()
    for peer in (1, 2, 0):
        unix = image.descriptions.add(flags=os.O_RDWR).unix
        unix.type, unix.has_peer, unix.peer = socket.SOCK_STREAM, True, peer
    assert len(descriptors.validate(image)) == 3


def test_one_who_listens_without_a_name_is_refused() -> None:
    """One waits at it: found by a new seed of the property above."""
    image = Tree()
    listener, client = (image.descriptions.add(flags=os.O_RDWR).unix for _ in range(2))
    listener.type = client.type = socket.SOCK_STREAM
    listener.listening, client.is_pending = True, True
    listener.pending.append(1)
    (reason,) = descriptors.validate(image)
    assert "is not consistent" in reason.why


def test_what_fails_half_way_leaves_nothing_open() -> None:
    """A description that is open when its position, count or times are refused; a limit that comes in between."""
    images = [Tree() for _ in range(6)]
    file, directory, eventfd, timer, memory, watcher = images
    file.descriptions.add(flags=os.O_RDONLY).file.path = b"/etc/passwd"
    file.descriptions[0].file.position = 1 << 63
    directory.descriptions.add(flags=os.O_RDONLY | os.O_DIRECTORY).directory.path = b"/"
    directory.descriptions[0].directory.position = (1 << 64) - 1
    eventfd.descriptions.add(flags=os.O_RDWR).eventfd.count = (1 << 64) - 1
    timer.descriptions.add(flags=os.O_RDWR).timerfd.left_ns = -1
    memory.shared.add(kind=SharedMemory.MEMFD, size=1)
    memory.descriptions.add(flags=os.O_RDWR).memfd.position = 1 << 63
    watcher.descriptions.add(flags=os.O_RDONLY).inotify.watches.add(number=1, mask=0xFFFF_FFFF, path=b"/")
    given = os.memfd_create("given")
    try:
        for image in images:
            with no_more_descriptors(), pytest.raises(TorporError):
                descriptors.open_all(image, lambda _: given).close()
    finally:
        os.close(given)
