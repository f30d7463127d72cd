"""Bytes that wait in pseudo terminals, on either side: nobody can look at them without taking them."""

import os
import sys
import termios
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "programs"))

from ready import HERE, judge, ready_and_wait, same


def main() -> None:
    typing, reader = os.openpty()
    modes = termios.tcgetattr(reader)
    modes[3] &= ~termios.ECHO
    termios.tcsetattr(reader, termios.TCSANOW, modes)
    os.write(typing, b"typed\n")
    screen, writer = os.openpty()
    os.write(writer, b"written")
    ending, ended = os.openpty()
    os.write(ending, b"\x04")
    (HERE / "numbers").write_text(f"{reader} {screen} {ended}")
    ready_and_wait()
    waited = [os.read(fd, 100) for fd in (reader, screen, ended)]
    same(waited, [b"typed\n", b"written", b""], "what waited")


judge(main)
