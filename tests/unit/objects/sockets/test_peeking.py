"""Looks at queues: what is shown, and what is said where the kernel may have held something back."""

from __future__ import annotations

import socket

import pytest
from hypothesis import example, given
from hypothesis import strategies as some

from tests.unit.objects.fds.descriptor_tree import holder
from torpor.objects.fds import descriptors
from torpor.objects.sockets.common import number
from torpor.objects.sockets.peeking import OFF, SO_PEEK_OFF, Look

PAIRS = [
    (socket.AF_UNIX, socket.SOCK_DGRAM),
    (socket.AF_UNIX, socket.SOCK_SEQPACKET),
    (socket.AF_INET, socket.SOCK_DGRAM),
]


def pair(family: int, kind: int) -> tuple[socket.socket, socket.socket]:
    """Two sockets that send to each other."""
    if family == socket.AF_UNIX:
        return socket.socketpair(family, kind)
    one, other = socket.socket(family, kind), socket.socket(family, kind)
    for sock in (one, other):
        sock.bind(("127.0.0.1", 0))
    one.connect(other.getsockname())
    other.connect(one.getsockname())
    return one, other


def look(sock: socket.socket) -> tuple[list[bytes], bool]:
    """What a look shows, and whether it says that something may be missing."""
    with Look(sock.fileno(), number(sock.fileno(), socket.SOL_SOCKET, SO_PEEK_OFF), 100) as seen:
        return [message.content for message in seen], seen.may_have_missed


@pytest.mark.parametrize(("family", "kind"), PAIRS)
def test_an_empty_message_that_is_not_shown_again_is_told(family: int, kind: int) -> None:
    near, far = pair(family, kind)
    with near, far:
        for message in (b"", b"", b"one"):
            near.send(message)
        assert look(far) == ([b"", b"", b"one"], False)
        assert look(far) == ([b"", b"one"], True)
        assert [far.recv(10) for _ in range(2)] == [b"", b""], "a look takes nothing"
        near.send(b"two")
        assert look(far)[0] == [b"one", b"two"]
        assert [far.recv(10) for _ in range(2)] == [b"one", b"two"]
        assert look(far) == ([], False)
        assert number(far.fileno(), socket.SOL_SOCKET, SO_PEEK_OFF) == OFF
        near.send(b"")
        assert [look(far) for _ in range(2)] == [([b""], False)] * 2, "the first is shown again and again"


@given(some.lists(some.sampled_from(["send", "send nothing", "receive", "look"]), max_size=30))
@example(["send nothing", "send nothing", "look", "receive", "look"])
@example(["send", "send nothing", "send", "look", "receive", "receive", "look", "send nothing", "look"])
def test_a_look_shows_all_or_says_that_it_may_not(steps: list[str]) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with near, far:
        queue: list[bytes] = []
        for count, step in enumerate([*steps, "look"]):
            if step.startswith("send"):
                queue.append(b"" if step == "send nothing" else b"x" * (1 + count % 3))
                if len(queue) > 8:  # the kernel holds ten
                    queue.pop()
                    continue
                near.send(queue[-1])
            elif step == "look":
                seen, may_lack = look(far)
                assert seen == queue or may_lack, (seen, queue)
                assert [one for one in seen if one] == [one for one in queue if one]
            elif queue:
                assert far.recv(100) == queue.pop(0)


def test_a_checkpoint_says_so() -> None:
    with holder(
        """
a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(("127.0.0.1", 0)); u.connect(u.getsockname())
for s in (a, u):
    for m in (b"one", b"", b"two"): s.send(m)
ready(a=a.fileno(), b=b.fileno(), u=u.fileno())
wait()
print([b.recv(10) for _ in range(3)] == [u.recv(10) for _ in range(3)] == [b"one", b"", b"two"], flush=True)
wait()
"""
    ) as tree:
        fds = tree.ready()
        image = tree.dump()
        kept = [list(one.unix.messages) + list(one.udp.messages) for one in image.descriptions]
        assert [one for one in kept if one] == [[b"one", b"", b"two"]] * 2
        again = descriptors.grab(tree.pids)
        (reason,) = descriptors.unsupported(again)
        assert f"fd {fds['b']}" in reason.subject
        assert reason.passing
        assert "an empty message may wait in it" in reason.why
        (notice,) = descriptors.notices(again)
        assert "empty datagrams" in notice
        assert f"fd {fds['u']}" in notice
        assert tree.go_on("") == "True"
        tree.stop()
        last = descriptors.grab(tree.pids)
        assert not descriptors.unsupported(last)
        assert not list(descriptors.notices(last))
