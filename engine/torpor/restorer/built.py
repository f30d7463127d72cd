"""A process of a tree that is being built."""

from __future__ import annotations

from dataclasses import dataclass

from torpor.image import image_pb2 as pb
from torpor.remote.blank import Task
from torpor.restorer.plan import ProcessPlan


@dataclass
class Built:
    """A process of the tree under construction."""

    plan: ProcessPlan
    threads: list[Task]
    """Main thread first."""


_NOBODY = pb.Process()


def image_of(process: Built) -> pb.Process:
    """Return the image of a process; an empty one for a stand-in."""
    return process.plan.member.image or _NOBODY
