"""A checkpoint's options, and what it does about threads that do not stop. Nothing is frozen."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

import torpor
from torpor.dump import checkpoint
from torpor.dump.checkpoint import HOLDS
from torpor.errors import Reason, Refused
from torpor.image import image_pb2 as pb
from torpor.objects.fds import descriptors
from torpor.objects.fds.outsiders import Shared
from torpor.remote.freeze import Stuck
from torpor.store import Store


@pytest.mark.parametrize("words", [{"then": "end"}, {"outside": "keep"}, {"tcp": "yes"}])
def test_a_word_that_is_none_is_refused_before_anything_is_done(store: Store, words: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(words))):
        torpor.checkpoint(os.getpid(), store=store, **words)
    assert not os.path.exists(store.path)


def test_connections_go_on_only_in_one_place(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torpor.objects.sockets.tcp_repair.require", lambda: None)
    with pytest.raises(Refused, match="use --then kill as well"):
        torpor.checkpoint(os.getpid(), store=store, tcp="keep")


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> list[Reason]:
    """The threads that do not leave their calls."""
    found: list[Reason] = []
    monkeypatch.setattr("torpor.objects.process.threads.stuck", lambda *_: found)
    return found


def failing(times: int) -> tuple[list[float], Callable[[float], str]]:
    """Something that meets a thread in an uninterruptible call so many times."""
    tried: list[float] = []

    def act(hold: float) -> str:
        tried.append(hold)
        if len(tried) <= times:
            raise Stuck("a thread does not stop")
        return "saved"

    return tried, act


def test_each_try_holds_the_others_longer(stuck: list[Reason]) -> None:
    tried, act = failing(2)
    assert checkpoint._unhindered(os.getpid(), act) == "saved"
    assert tried == list(HOLDS[:3])
    tried, act = failing(99)
    with pytest.raises(Stuck):
        checkpoint._unhindered(os.getpid(), act)
    assert tried == list(HOLDS)


def test_a_thread_that_hangs_freezes_nobody(stuck: list[Reason]) -> None:
    stuck.append(Reason("process 7, thread 8", "it waits for a disk"))
    tried, act = failing(0)
    with pytest.raises(Refused, match="cannot be stopped"):
        checkpoint._unhindered(7, act)
    assert not tried


def test_an_outsider_stands_in_the_way_of_a_kill_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torpor.objects.fds.outsiders.unread_input", lambda _: iter(["3 bytes are not kept"]))
    keeps = [Shared(os.getpid(), "fd 3", "its port")]
    for then, raises in (("run", False), ("stop", False), ("kill", True)):
        taken: Any = SimpleNamespace(notices=["before"], descriptors=None)
        if raises:
            with pytest.raises(Refused, match="could not be woken here"):
                checkpoint._of_outsiders(keeps, taken, then)  # type: ignore[arg-type]
        else:
            checkpoint._of_outsiders(keeps, taken, then)  # type: ignore[arg-type]
            assert taken.notices[0] == "before"
            assert taken.notices[-1] == "3 bytes are not kept"
            assert len(taken.notices) == 4


def looks(monkeypatch: pytest.MonkeyPatch, *found: list[Reason], births: bool = False) -> None:
    """Let the preflight see these reasons, look by look; the last one stays."""
    seen = SimpleNamespace(pid=7, name="process 7", status={})
    left = list(found)
    walked = 0

    def walk(_: int) -> list[Any]:
        nonlocal walked
        walked += 1
        return [seen, SimpleNamespace(pid=100 + walked)] if births else [seen]

    def look(*_: object) -> Any:
        return [], left.pop(0) if len(left) > 1 else left[0], True

    monkeypatch.setattr(checkpoint, "_look", look)
    monkeypatch.setattr(checkpoint, "_private", lambda _: [])
    monkeypatch.setattr("torpor.objects.process.tree.walk", walk)
    monkeypatch.setattr("torpor.dump.cgroups.shortage", lambda _: "")


def test_what_only_one_look_shows_is_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    always, once, passing = Reason("fd 3", "always"), Reason("fd 4", "once"), Reason("fd 5", "passes", passing=True)
    looks(monkeypatch, [once], [])
    assert checkpoint.preflight(7) == ""
    looks(monkeypatch, [passing])
    assert checkpoint.preflight(7) == "", "the freeze sees what becomes of it"
    looks(monkeypatch, [once, always], [always])
    with pytest.raises(Refused) as refused:
        checkpoint.preflight(7)
    assert refused.value.reasons == (always,)


def test_the_other_end_may_be_held_by_one_that_was_just_born(monkeypatch: pytest.MonkeyPatch) -> None:
    outside = Reason("fd 3", f"{descriptors.OUTSIDE} and so on")
    looks(monkeypatch, [outside], births=True)
    assert checkpoint.preflight(7) == ""
    looks(monkeypatch, [outside])
    with pytest.raises(Refused):
        checkpoint.preflight(7)


@pytest.mark.parametrize(
    ("others", "words"), [(0, "python3 train.py (PID 12)"), (3, "python3 train.py (PID 12) and 3 more")]
)
def test_a_job_is_named_by_its_command(others: int, words: str) -> None:
    image = pb.Tree()
    for pid in range(12, 13 + others):
        image.processes.add(pid=pid).threads.add(name=b"python3")
    assert checkpoint._summary(image, [b"/usr/bin/python3", b"train.py"]) == words
