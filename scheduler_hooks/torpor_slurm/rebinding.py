"""After a wake: bind the tasks that srun had bound to a share of the old allocation to the same share of the new one.

The restore has bound each task to those of its old processors that the new allocation has too. These may be fewer than
its share.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from torpor import processes
from torpor_slurm.step.tasks import BOUND


def rebind(root: int, before: Sequence[int], size: int) -> None:
    """Bind the tasks of a process tree to the processors that have the same positions in the new allocation.

    Threads that had set an affinity of their own are left alone.

    Args:
        root: the PID of the tree's root.
        before: the processors that the job had when it was saved, by the kernel's numbers, sorted.
        size: how many processors the allocation has.
    """
    here = sorted(os.sched_getaffinity(0))
    if not before or here == list(before):
        return
    for pid in processes.tree(root):
        with suppress(OSError, ValueError):  # it has ended
            words = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
            share = [
                int(cpu) for word in words if word.startswith(f"{BOUND}=") for cpu in word[len(BOUND) + 1 :].split(",")
            ]
            if not share or max(share) >= len(before):
                continue
            left = {before[cpu] for cpu in share}.intersection(here) or set(here)
            # If Slurm does not confine the job to its allocation, nobody knows which processors are its own: use all.
            new = {here[cpu] for cpu in share} if len(here) == size and max(share) < size else set(here)
            for thread in map(int, os.listdir(f"/proc/{pid}/task")):
                if os.sched_getaffinity(thread) == left:
                    os.sched_setaffinity(thread, new)
