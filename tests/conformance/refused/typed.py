"""Bytes that wait in pseudo terminals, on either side: nobody can look at them without taking them."""

import fcntl
import os
import select
import struct
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
    pressing, patient = os.openpty()
    modes = termios.tcgetattr(patient)
    modes[0] = modes[1] = modes[3] = 0
    modes[6][termios.VMIN] = b"\2"  # one byte is no event
    termios.tcsetattr(patient, termios.TCSANOW, modes)
    os.write(pressing, b"1")
    while not struct.unpack("i", fcntl.ioctl(patient, termios.FIONREAD, bytes(4)))[0]:
        pass
    for fd in (reader, screen, ended):
        select.select([fd], [], [])
    (HERE / "numbers").write_text(f"{reader} {screen} {ended} {patient}")
    ready_and_wait()
    os.set_blocking(patient, False)
    waited = [os.read(fd, 100) for fd in (reader, screen, ended, patient)]
    same(waited, [b"typed\n", b"written", b"", b"1"], "what waited")


judge(main)
