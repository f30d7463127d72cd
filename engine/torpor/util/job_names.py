"""The name of a job for users: its program, and if that is an interpreter, the script that it runs."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Final, NamedTuple

COMM_LENGTH: Final = 15
"""The most bytes of a process's name (TASK_COMM_LEN of linux/sched.h, without the terminating zero)."""


class _Interpreter(NamedTuple):
    """The options that a kind of interpreter takes before its script."""

    name: re.Pattern[bytes]
    text: bytes = b""
    """Letters of options that are followed by program text. The text is not shown, since it may contain secrets."""
    module: tuple[bytes, ...] = ()
    """Options that are followed by the name of a module or archive to run."""
    valued: tuple[bytes, ...] = ()
    """Other options with a value in the next word."""


_INTERPRETERS: Final = (
    _Interpreter(re.compile(rb"(python|pypy)[\d.]*"), b"c", (b"-m",), (b"-W", b"-X")),
    _Interpreter(
        re.compile(rb"(ba|da|z|k|fi)?sh"), b"c", (), (b"-o", b"+o", b"-O", b"+O", b"--rcfile", b"--init-file")
    ),
    _Interpreter(re.compile(rb"(perl|ruby|lua|php)[\d.]*"), b"eEr", (), (b"-I",)),
    _Interpreter(re.compile(rb"node|julia|R|Rscript"), b"epE", (), (b"-r", b"--require", b"--import")),
    _Interpreter(
        re.compile(rb"java"), b"", (b"-jar",), (b"-cp", b"-classpath", b"--class-path", b"-p", b"--module-path")
    ),
)


def job_name(comm: bytes, words: Sequence[bytes]) -> str:
    """Return a name such as ``solver``, ``python3 train.py``, ``python3 -m pytest`` or ``sh -c``.

    Args:
        comm: the name of the process; a script that names its interpreter (#!) has its own.
        words: its command line; empty if it cannot be read.
    """
    program = os.path.basename(words[0]).lstrip(b"-") if words else b""
    name = program if program[:COMM_LENGTH] == comm else comm  # a process may have renamed itself
    kind = next((kind for kind in _INTERPRETERS if kind.name.fullmatch(name)), None)
    script = _script(kind, words[1:]) if kind else b""
    return b" ".join(filter(None, (name, script))).decode(errors="replace")


def _script(kind: _Interpreter, words: Sequence[bytes]) -> bytes:
    rest = iter(words)
    for word in rest:
        letters = word[1:] if word.startswith(b"-") and not word.startswith(b"--") else b""
        if word in kind.module:
            return b" ".join(filter(None, (word, os.path.basename(next(rest, b"")))))
        if letters.isalpha() and letters[-1] in kind.text:
            return b"-" + letters[-1:]
        if word.startswith(b"--file="):  # R's front end turns `R -f` and `Rscript` into this
            return os.path.basename(word.partition(b"=")[2])
        if word in kind.valued:
            next(rest, None)
        elif not word.startswith((b"-", b"+")):
            return os.path.basename(word)
    return b""
