"""The programs' side of the harness: say that the state stands, wait for the word, judge oneself.

Nothing here keeps a descriptor open: what is said goes into files that are closed again, and the word to go
on is a signal, so that a program's image holds the program's own state and nothing of the harness.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

HERE = Path(os.environ["CONFORM_DIR"])
GO = signal.SIGUSR2
_faults: list[str] = []

# Blocked before any thread is made, so that only `await_go` takes it.
signal.pthread_sigmask(signal.SIG_BLOCK, {GO})


class Word(NamedTuple):
    """What the harness did between `ready` and the word to go on."""

    killed: bool
    """The processes are restored ones; else they are the same that said ready."""
    frozen: float
    """Seconds in which the program could not run, at most."""


def ready(*sleeping: tuple[int, int]) -> None:
    """Say that the state stands once each (TID, system call number) in `sleeping` is in that call."""
    draft = HERE / "ready.draft"
    draft.write_text("".join(f"{tid} {number}\n" for tid, number in sleeping))
    draft.rename(HERE / "ready")


def await_go() -> Word:
    """Wait for the harness's signal."""
    signal.sigwait({GO})
    how, frozen = (HERE / "go").read_text().split()
    return Word(how == "killed", int(frozen) / 1e9)


def ready_and_wait(*sleeping: tuple[int, int]) -> Word:
    """Say ready once those in `sleeping` sleep, and wait; this thread sleeps in rt_sigtimedwait (128)."""
    ready((threading.get_native_id(), 128), *sleeping)
    return await_go()


def expect(holds: object, what: str) -> None:
    """Note `what` as a fault unless it holds."""
    if not holds:
        _faults.append(what)


def same(now: Any, before: Any, what: str) -> None:
    """Note a fault unless `now` equals `before`."""
    expect(now == before, f"{what}: {before!r:.300} became {now!r:.300}")


def verdict() -> int:
    """Write the judgement, return the exit status that goes with it."""
    draft = HERE / "verdict.draft"
    draft.write_text("\n".join(_faults) or "ok")
    draft.rename(HERE / "verdict")
    return 1 if _faults else 0


def judge(main: Callable[[], None]) -> NoReturn:
    """Run a program's main function, and turn an exception into a fault."""
    try:
        main()
    except Exception:
        _faults.append(traceback.format_exc())
    code = verdict()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code) if threading.active_count() > 1 else sys.exit(code)
