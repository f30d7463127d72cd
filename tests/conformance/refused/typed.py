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
    (HERE / "numbers").write_text(f"{reader} {screen}")
    ready_and_wait()
    same((os.read(reader, 100), os.read(screen, 100)), (b"typed\n", b"written"), "what waited")


judge(main)
