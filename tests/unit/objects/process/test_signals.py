"""Signal actions and pending signals: what is set, in which stage, and what the kernel does not store."""

from __future__ import annotations

import os
import signal

import pytest

from tests.unit.objects.process.inside import described, make, restored
from torpor.image import image_pb2 as pb
from torpor.objects.part import Stage
from torpor.objects.process import signals
from torpor.objects.process.signals import Actions, Queue, ThreadQueue
from torpor.remote import ptrace

ACTIONS = Actions()


def info(number: int) -> bytes:
    return number.to_bytes(4, "little").ljust(ptrace.SIGINFO_SIZE, b"\0")


def actions(process: pb.Process) -> dict[int, tuple[int, int, int, int]]:
    return {one.signal: (one.handler, one.flags, one.restorer, one.mask) for one in process.actions}


def test_actions_come_back() -> None:
    def catch() -> None:
        signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        signal.signal(signal.SIGRTMAX, signal.SIG_IGN)

    image = described(ACTIONS, catch)
    found = actions(image)
    assert found[signal.SIGUSR2][0] == found[signal.SIGRTMAX][0] == signal.SIG_IGN
    assert found[signal.SIGUSR1][0] > 1 and signal.SIGURG not in found
    again = actions(restored(ACTIONS, image, lambda: signal.signal(signal.SIGUSR1, signal.SIG_DFL)))
    assert {number: again[number] for number in found} == found


def test_a_signal_that_building_has_caused_is_discarded() -> None:
    def caused() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signal.sigpending() == {signal.SIGUSR1}
        for call in signals.discard(signal.SIGUSR1):
            make(call)
        assert not signal.sigpending()

    described(ACTIONS, caused)


def test_sigtrap_is_ignored_at_the_very_end_too() -> None:
    process = pb.Process()
    process.actions.add(signal=signal.SIGTRAP, handler=signal.SIG_IGN)
    process.actions.add(signal=signal.SIGUSR1, handler=signal.SIG_IGN)
    last = [call.args[0] for stage, call in ACTIONS.calls(process, None) if stage == Stage.RELEASE]
    assert last == [signal.SIGTRAP]


@pytest.mark.parametrize(
    ("number", "stage"),
    [
        (signal.SIGUSR1, "usual"),
        (signal.SIGSEGV, Stage.RELEASE),
        (signal.SIGSTOP, None),
        (signal.SIGTRAP, Stage.RELEASE),
    ],
)
def test_when_a_pending_signal_is_queued_again(number: int, stage: Stage | str | None) -> None:
    process, thread = pb.Process(pid=5, pending=[info(number)]), pb.Thread(tid=6, pending=[info(number)])
    for part, usual in (
        ([*Queue().calls(process, None)], Stage.ALL_THREADS),
        ([*ThreadQueue().calls(thread, process, pb.Tree(), None)], Stage.BEFORE_CREDENTIALS),
    ):
        wanted = usual if stage == "usual" else stage
        assert [step.stage for step in part] == ([] if wanted is None else [wanted])
        assert all(number in step.call.args and info(number) in step.call.args for step in part)
    assert signals.stops([info(signal.SIGUSR1), info(number)]) == (number == signal.SIGSTOP)


def test_a_signal_for_which_the_kernel_had_no_room_has_no_sender() -> None:
    status = b"SigPnd:\t0000000000000200\nShdPnd:\t0000000000000900\n"  # SIGUSR1; SIGKILL and SIGUSR2
    seen = [info(signal.SIGUSR2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ptrace, "peek_pending", lambda pid, *, shared, most: list(seen) if shared else [])
        assert signals.pending(status, 1, "process 1", shared=False) == [info(signal.SIGUSR1)]
        assert signals.pending(status, 1, "process 1", shared=True) == seen
    assert signals.waiting([status]) == 0xB00


def test_what_is_no_siginfo_is_invalid() -> None:
    assert list(Queue().validate_form(pb.Process(pending=[info(1)]))) == []
    assert list(Queue().validate_form(pb.Process(pending=[b"short"])))
    assert list(ThreadQueue().validate_form(pb.Thread(pending=[info(1), b""])))
