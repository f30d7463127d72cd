"""Kinds with little state, each dumped from a real process and opened again."""

from __future__ import annotations

import os
import signal
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.objects.fds.descriptor_tree import Acting, dumped, opened
from torpor.objects.fds import unsupported


def full(slot: int) -> None:
    with pytest.raises(OSError, match="No space left"):
        os.write(slot, b"x")


def zeros(slot: int) -> None:
    assert os.read(slot, 3) == bytes(3)


def signalled(slot: int) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)  # the test runner has other threads
        assert int.from_bytes(os.read(slot, 128)[:4], "little") == signal.SIGUSR1
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def named_pipe(slot: int) -> None:
    assert stat.S_ISFIFO(os.fstat(slot).st_mode) and os.read(slot, 9) == b"kept"


def directory(slot: int) -> None:
    assert "it" in os.listdir(slot)


MAKE_FIFO = "os.mkfifo('it'); a = os.open('it', os.O_RDWR); os.write(a, b'kept')"


@pytest.mark.parametrize(
    ("code", "kind", "look"),
    [
        ("a = os.open('/dev/full', os.O_WRONLY)", "device", full),
        ("a = os.open('/dev/zero', os.O_RDONLY)", "device", zeros),
        ("a = syscall(NR.signalfd4, -1, struct.pack('Q', 1 << signal.SIGUSR1 - 1), 8, 0)", "signalfd", signalled),
        (MAKE_FIFO, "fifo", named_pipe),
        ("open('it', 'w').close(); a = os.open('.', os.O_RDONLY | os.O_DIRECTORY)", "directory", directory),
    ],
    ids=["full", "zero", "signalfd", "fifo", "directory"],
)
def test_what_it_is_it_is_again(acting: Acting, code: str, kind: str, look: Callable[[int], None]) -> None:
    def body(folder: Path) -> None:
        fds, image = dumped(code + "\nready(a=a)\nwait()\n", cwd=folder)
        with opened(image) as woken:
            assert image.descriptions[woken.index(fds["a"])].WhichOneof("kind") == kind
            look(woken(fds["a"]))
        (folder / "it").unlink(missing_ok=True)

    acting(body)


@pytest.mark.parametrize("path", ["/dev/infiniband/uverbs0", "/dev/hfi1_0", "/dev/cxi0", "/dev/kgni0"])
def test_adapters_of_fast_networks_are_refused_with_the_way_around(path: str) -> None:
    open_file: Any = SimpleNamespace(link=path, stat=os.stat("/dev/null"), state=None)
    tree: Any = None
    (why,) = unsupported.UnsupportedKind().unsupported(open_file, tree)
    assert "adapter" in why.why
    assert "--mpi=tcp" in why.advice
