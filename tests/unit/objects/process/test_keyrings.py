"""Keyrings and keys: what a process has is read, or refused by name."""

from __future__ import annotations

import errno
import os
import pickle
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.objects.process.inside import replies
from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.image import image_pb2 as pb
from torpor.objects.process import keyrings
from torpor.objects.process.keyrings import Here, Keys, Rings
from torpor.remote.batch import Call
from torpor.remote.children import forked
from torpor.remote.sys import syscall, try_syscall

JOIN, UPDATE_RIGHTS, LINK, SET_TIMEOUT, REVOKE, SESSION = 1, 5, 8, 15, 3, -3
ALL = 0x3F3F0000
HERE = Here(0, 0, "this boot")


def in_child(act: Callable[[], Any]) -> Any:
    """What `act` returns in a child, which has keyrings of its own."""
    if try_syscall(NR.keyctl, 0, SESSION, 0) in (-errno.ENOSYS, -errno.EPERM):
        pytest.skip("this kernel has no keys, or a container forbids them")
    reader, writer = os.pipe()

    def tell() -> None:
        with open(writer, "wb") as file:
            try:
                pickle.dump(act(), file)
            except BaseException:
                pickle.dump(traceback.format_exc(), file)
                raise

    child = forked(tell)
    os.close(writer)
    with open(reader, "rb") as file:
        found = pickle.load(file)
    _, status = os.waitpid(child, 0)
    assert status == 0, found
    return found


def add(name: bytes, payload: bytes, kind: bytes = b"user", ring: int = SESSION) -> int:
    return syscall(NR.add_key, kind + b"\0", name + b"\0", payload, len(payload), ring)


def grabbed(ring: int) -> Keys:
    """What is read of a process whose session keyring this is."""
    return keyrings.grab({os.getpid(): ([Rings(0, 0, ring)], replies)}, own=0)


def described(keys: Keys) -> pb.Tree:
    image = pb.Tree()
    image.processes.add(pid=7)
    keyrings.describe(keys, image, {os.getpid(): 7})
    return image


def test_keys_come_with_all_that_is_known_of_them() -> None:
    def body() -> bytes:
        ring = syscall(NR.keyctl, JOIN, b"mine\0", 0)
        add(b"b", b"second")
        first = add(b"a;b\xff", bytes(range(256)))
        syscall(NR.keyctl, UPDATE_RIGHTS, first, 0x3F010000)
        syscall(NR.keyctl, SET_TIMEOUT, first, 9000)
        return described(grabbed(ring)).SerializeToString()

    image = pb.Tree.FromString(in_child(body))
    (ring,) = image.keyrings
    assert (ring.name, ring.users, image.processes[0].session_keyring) == (b"mine", False, 1)
    assert [(key.description, key.payload) for key in ring.keys] == [
        (b"a;b\xff", bytes(range(256))),
        (b"b", b"second"),
    ]
    assert ring.keys[0].rights == 0x3F010000
    assert ring.keys[0].seconds in (0, 7200), "/proc/keys tells whole hours, if it may be read"
    assert not list(keyrings.validate_form(image))


def test_a_name_of_any_length_is_kept() -> None:
    """The answer of the kernel is longer than the name."""
    longest = b"n" * 4095

    def body() -> Any:
        ring = syscall(NR.keyctl, JOIN, longest + b"\0", 0)
        add(b"x", b"1")
        keys = grabbed(ring)
        return [ring.name.description for ring in keys.rings.values()], keys.reasons

    assert in_child(body) == ([longest], [])


@pytest.mark.parametrize("rights", [0x3E3E0000, 0x35350000])
def test_what_may_not_be_viewed_or_read_is_refused(rights: int) -> None:
    """Of a keyring that a program has locked."""

    def body() -> Any:
        ring = syscall(NR.keyctl, JOIN, b"mine\0", 0)
        add(b"x", b"1")
        syscall(NR.keyctl, UPDATE_RIGHTS, ring, rights)
        keys = grabbed(ring)
        return list(keys.rings), [why for _, why in keys.reasons]

    rings, (why,) = in_child(body)
    assert not rings
    assert "may not be viewed" in why or "cannot be read" in why


def test_keys_that_are_not_kept_are_refused_by_name() -> None:
    def body() -> Any:
        ring = syscall(NR.keyctl, JOIN, 0, 0)
        add(b"secret:1", b"1", b"logon")
        nested = syscall(NR.add_key, b"keyring\0", b"inner\0", 0, 0, SESSION)
        locked = add(b"locked", b"1")
        syscall(NR.keyctl, UPDATE_RIGHTS, locked, 0x35010000)
        dead = add(b"dead", b"1")
        syscall(NR.keyctl, REVOKE, dead)
        lenient = keyrings.grab({os.getpid(): ([Rings(0, 0, ring)], replies)}, own=ring)
        return nested, [why for _, why in grabbed(ring).reasons], lenient.reasons

    _, reasons, lenient = in_child(body)
    assert any("'secret:1' of the type logon" in why for why in reasons)
    assert any("'inner' of the type keyring" in why for why in reasons)
    assert any("'locked', which may not be read" in why for why in reasons)
    assert not any("dead" in why for why in reasons), "it has no content any more"
    assert lenient == [], "who wakes it has a login of their own"


def test_an_empty_keyring_without_a_name_is_none() -> None:
    assert in_child(lambda: grabbed(syscall(NR.keyctl, JOIN, 0, 0)).rings) == {}


def test_threads_with_different_keyrings_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = keyrings.Ring(1, keyrings.Described(b"keyring", 0, 0, 0, b"x"))
    monkeypatch.setattr(keyrings, "_take", lambda *_, **__: ring)
    for threads, word in (
        ([Rings(5, 0, 0)], "a thread has keys of its own"),
        ([Rings(0, 1, 0), Rings(0, 2, 0)], "different process keyrings"),
        ([Rings(0, 0, 1), Rings(0, 0, 2)], "different session keyrings"),
    ):
        ((_, why),) = keyrings.grab({1: (threads, replies)}, own=0).reasons
        assert word in why
    assert keyrings.grab({1: ([Rings(0, 3, 4)] * 2, replies)}, own=0).process == {1: 3}


def tree(*processes: tuple[int, int, int]) -> pb.Tree:
    """PID, parent and session keyring of each."""
    image = pb.Tree()
    for pid, ppid, ring in processes:
        image.processes.add(pid=pid, ppid=ppid, session_keyring=ring)
    for number in range(3):
        image.keyrings.add(name=b"ring %d" % number, serial=number + 1, rights=ALL)
    return image


@pytest.mark.parametrize(
    ("processes", "refused"),
    [
        ([(1, 0, 1), (2, 1, 1), (3, 2, 1)], []),
        ([(1, 0, 1), (2, 1, 2), (3, 2, 2)], []),
        ([(1, 0, 1), (2, 1, 2), (3, 1, 2)], [3]),
        ([(1, 0, 1), (2, 1, 2), (3, 2, 1)], [3]),
        ([(1, 0, 1), (2, 1, 0)], [2]),
        ([(1, 0, 0), (2, 1, 2), (3, 99, 0)], []),
    ],
)
def test_a_keyring_must_be_inherited_or_joined_once(processes: list[tuple[int, int, int]], refused: list[int]) -> None:
    words = list(keyrings.unsupported(tree(*processes)))
    assert [int(text.split()[1]) for text in words] == refused


def keyctls(calls: list[Call]) -> list[Any]:
    return [call.args[0] if call.nr == NR.keyctl else "add" for call in calls]


def test_the_session_that_the_restorer_has_is_used() -> None:
    image = tree((1, 0, 2))
    image.host.boot_id = "this boot"
    assert keyctls(keyrings.for_all(image, HERE, owner=False)) == [JOIN, UPDATE_RIGHTS]
    assert keyrings.for_all(image, Here(2, 0, "this boot"), owner=False) == []
    assert keyrings.for_all(image, Here(2, 0, "another boot"), owner=False) != [], "a serial is of one boot"
    assert keyrings.for_all(tree((1, 0, 0)), HERE, owner=False) == []


def test_keys_are_added_before_rights_are_taken_away() -> None:
    image = tree((1, 0, 1), (2, 1, 2))
    image.keyrings[1].users = True
    image.keyrings[1].keys.add(type=b"user", description=b"k", payload=b"1", seconds=5, rights=ALL)
    calls = list(keyrings.of_process(image.processes[1], image, Here(0, 9, "x"), owner=True))
    assert keyctls(calls) == [JOIN, "add", SET_TIMEOUT, 4, UPDATE_RIGHTS, LINK, 4, UPDATE_RIGHTS]
    assert list(keyrings.of_process(image.processes[0], image, HERE, owner=True)) == [], "init has joined it"


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.keyrings.add(name=b""),
        lambda image: image.keyrings.add(name=b"a\0b"),
        lambda image: image.keyrings[0].keys.add(type=b"logon", description=b"x"),
        lambda image: image.keyrings[0].keys.add(type=b"user", description=b""),
        lambda image: image.keyrings[0].keys.add(type=b"user", description=b"x", payload=bytes(1 << 16)),
        lambda image: image.keyrings[0].keys.add(type=b"user", description=b"x", seconds=(1 << 32) - 1),
        lambda image: image.processes.add(pid=9, session_keyring=4),
    ],
)
def test_what_no_checkpoint_writes_is_refused(change: Callable[[pb.Tree], object]) -> None:
    image = tree((1, 0, 1))
    assert not list(keyrings.validate_form(image))
    change(image)
    assert len(list(keyrings.validate_form(image))) == 1


def test_times_left_are_read_from_lines_that_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (
        b"0000000a I--Q---     1   9m 3f010000     0     0 user      a: 1\n"
        b"0000000b I--Q---     1   0s 3f010000     0     0 user      b: 1\n"
        b"0000000c I--Q---     1 perm 3f010000     0     0 user      c\n"
        b"0000000d I--Q---     1 expd 3f010000     0     0 user      d\n"
        b"0000000e I--Q---    12   2w 3f010000     0     0 user      e: 1\n"
    )
    monkeypatch.setattr(procfs, "read", lambda _: lines)
    assert keyrings._times_left() == {10: 540, 11: 1, 14: 14 * 86400}
