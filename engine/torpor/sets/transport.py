"""What a save or a wake of a set needs of a transport: one authenticated all-gather."""

from __future__ import annotations

from typing import Protocol

from torpor.errors import PartFailed

MOST_WORDS = 1 << 20
"""The most bytes that a part may say in a step."""
MOST_PARTS = 4096


class Transport(Protocol):
    """Connects the agents of all parts of a set. `torpor.star` makes one over TCP; a launcher may bring its own.

    It must let nobody take part who is not one of the set's agents: an image is written and processes are killed by
    what they say. After an error it is broken, and every further call raises an error as well.
    """

    @property
    def part(self) -> int:
        """The number of this part, from 0 on."""

    @property
    def parts(self) -> int:
        """How many there are."""

    @property
    def address(self) -> str:
        """The IP address of this host at which the agents of all other parts reach it."""

    def gather(self, step: str, mine: bytes, seconds: float) -> list[bytes]:
        """Tell all other parts something, and wait for what they say.

        Args:
            step: what each part must be at: if one is at another step, all fail.
            mine: what this part says, `MOST_WORDS` bytes at most.
            seconds: how long to wait for the others.

        Returns:
            What each part says, in the order of the parts.

        Raises:
            PartFailed: a part is gone, at another step, silent for too long, or says what is not understood.
        """


def check_numbers(part: int, parts: int) -> None:
    """Raise ValueError if these are no numbers of a part and of parts."""
    if not 0 < parts <= MOST_PARTS or not 0 <= part < parts:
        raise ValueError(f"part {part} of {parts}: there are 1 to {MOST_PARTS} parts, numbered from 0 on")


def too_long(size: int) -> PartFailed:
    """The error if this part says too much."""
    return PartFailed(f"this part has {size} bytes to tell the others, and may have {MOST_WORDS}")
