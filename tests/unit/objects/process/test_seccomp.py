"""System-call filters at a restore: what is said of the surroundings, and what an image must not say."""

from __future__ import annotations

import struct

import pytest

from torpor.arch.x86_64 import NR
from torpor.image import image_pb2 as pb
from torpor.objects.process import seccomp
from torpor.probe import Probe
from torpor.remote.batch import Struct

ALLOW_ALL = struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000)
LOG, SPEC_ALLOW = 2, 4


def image(*codes: bytes, uses: tuple[int, ...] = (), flags: int = 0) -> pb.Tree:
    """A tree of one thread, with filters."""
    tree = pb.Tree(filters=[pb.Filter(code=code, flags=flags) for code in codes])
    tree.processes.add(pid=7).threads.add(tid=7, filters=uses)
    return tree


@pytest.mark.parametrize(
    ("before", "here", "words"),
    [(0, 0, None), (2, 2, None), (1, 0, "was under a system-call filter"), (0, 2, "is under 2 system-call filters")],
)
def test_other_surroundings_are_told(
    monkeypatch: pytest.MonkeyPatch, before: int, here: int, words: str | None
) -> None:
    monkeypatch.setattr(seccomp, "own", lambda: here)
    said = list(seccomp.warnings(pb.Tree(host=pb.Host(filters=before))))
    assert bool(said) == bool(words)
    assert not words or words in said[0]


def test_filters_are_installed_in_their_order() -> None:
    other = ALLOW_ALL + ALLOW_ALL
    tree = image(ALLOW_ALL, other, uses=(1, 0), flags=LOG)
    calls = list(seccomp.install(tree.processes[0].threads[0].filters, tree.filters))
    assert [(call.nr, call.args[:2], call.expect) for call in calls] == [(NR.seccomp, (1, LOG | SPEC_ALLOW), 0)] * 2
    contents = [call.args[2] for call in calls]
    assert contents == [
        Struct(struct.pack("<H6xQ", len(code) // 8, 16) + code, (8,)) for code in (other, ALLOW_ALL)
    ]  # the pointer in it is to what follows


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (image(ALLOW_ALL, uses=(0,)), ""),
        (image(ALLOW_ALL[:7]), "7 bytes"),
        (image(b""), "0 bytes"),
        (image(ALLOW_ALL * 4097), "bytes"),
        (image(ALLOW_ALL, uses=(0, 1)), "not there"),
    ],
)
def test_what_no_checkpoint_writes_is_found(tree: pb.Tree, words: str) -> None:
    found = list(seccomp.validate_form(tree))
    assert bool(found) == bool(words)
    assert not words or words in found[0]


@pytest.mark.parametrize(("able", "own", "refused"), [(True, True, 0), (False, True, 1), (False, False, 0)])
def test_who_cannot_give_filters_back_does_not_wake_it(
    monkeypatch: pytest.MonkeyPatch, able: bool, own: bool, refused: int
) -> None:
    monkeypatch.setattr(seccomp, "probe", lambda: Probe(read_filters=able))
    tree = image(ALLOW_ALL, uses=(0,)) if own else image()
    assert len(list(seccomp.validate(tree))) == refused
