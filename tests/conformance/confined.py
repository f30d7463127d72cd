"""Starts a program and takes a checkpoint of it, or of the PID that it is given; says what came of it.

To be run under system-call filters (tests/hosts.py), which it, its children and so the program inherit. The last line
is what torpor said, "saved" or an error's name and message.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile

import torpor
from torpor.errors import TorporError


def main(pid: int) -> None:
    """Take it, and see that the program is as it was."""
    program = [sys.executable, "-c", "print(input())"]
    # Closing the others would take close_range, which may be what the filter is about.
    sleeper = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False)
    with tempfile.TemporaryDirectory(prefix="torpor-test-confined-") as store:
        try:
            torpor.checkpoint(pid or sleeper.pid, store=store)
            said = "saved"
        except TorporError as error:
            said = f"{type(error).__name__}: {error}"
    out, _ = sleeper.communicate(b"and so on\n")
    assert out == b"and so on\n"
    assert sleeper.returncode == 0
    print(said)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
