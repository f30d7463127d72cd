"""What is held back in a UDP socket until the rest of a datagram is written (MSG_MORE, UDP_CORK)."""

import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "programs"))

from ready import HERE, judge, ready_and_wait, same


def main() -> None:
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind(("127.0.0.1", 0))
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.connect(receiver.getsockname())
    sender.send(b"one, ", socket.MSG_MORE)
    (HERE / "numbers").write_text(f"{sender.fileno()}\n")
    ready_and_wait()
    sender.send(b"two")
    same(receiver.recv(100), b"one, two", "what was held back")


judge(main)
