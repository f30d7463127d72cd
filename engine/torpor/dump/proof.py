"""Prove, before a tree is killed, that this host could restore it: validate its image as a restore would.

Before the snapshot gets its name, the manifest is read back from the store with all its checks, every pack that it
names is opened, and the image is validated and compiled to a plan. Conflicts with the tree that still lives (its PIDs,
ports, names and locks) do not count. Its sockets are built once, where these conflicts are not
(`torpor.dump.socket_trial`).

The snapshot's own blocks were hashed as they were written. Of these and of the blocks in earlier packs, as many are
read back as `SECONDS` allow: all of them up to some hundreds of MiB, a sample of more. A grace time that is nearly over
is not spent on reading gigabytes twice.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence, Set

from torpor.dump import socket_trial
from torpor.errors import ImageDamaged, Reason, Refused, RestoreFailed, RestoreRefused
from torpor.image import image_pb2 as pb
from torpor.image import reading
from torpor.probe import probe
from torpor.restorer import surroundings
from torpor.restorer.plan import RestorerFds, make
from torpor.restorer.validation import validate, validate_abilities
from torpor.store import SnapshotReader

SECONDS = 0.2
"""Time to read blocks back; the first batch of them is always read."""
_TOGETHER = 256
"""Blocks in a batch that is read back in order."""
DIFFERING = "sockets were made once, and differ: "
"""The beginning of a notice."""
_SHOWN = 3
"""The most differences that it lists."""


def prove_abilities() -> None:
    """Check, without an image, whether this host can restore any tree at all.

    Raises:
        Refused: this host cannot restore any tree.
    """
    if reasons := list(validate_abilities(probe())):
        raise _refused(reasons)


def prove(reader: SnapshotReader, standing: Set[int]) -> list[str]:
    """Check that this host could restore a snapshot.

    Returns:
        Notices on what would not be as before.

    Args:
        reader: reads the snapshot from disk.
        standing: PIDs and thread ids of the tree, which still lives, in this process's PID namespace.

    Raises:
        Refused: a restore here would be refused, for the same reasons.
        ImageDamaged, StoreError: the snapshot cannot be read back.
    """
    image = reading.read(reader)
    given = os.pipe2(os.O_CLOEXEC)  # stands for what a restoring user gives as 0, 1 and 2
    try:
        validate(image, reader.info.id, probe(), (given[0], given[1], given[1]), standing=True)
        _plan(image, reader, standing)
        sockets = socket_trial.made(image)
        if sockets.failures:
            raise _refused(sockets.failures)
    except RestoreRefused as error:
        raise _refused(error.reasons) from error
    except (RestoreFailed, ImageDamaged) as error:
        raise _refused([Reason("the tree", error.message, error.advice)]) from error
    finally:
        for fd in given:
            os.close(fd)
    for number in range(len(reader.info.packs)):
        reader.pack_fd(number)
    _read_back(reader)
    more = f"; and {len(sockets.differences) - _SHOWN} more" if len(sockets.differences) > _SHOWN else ""
    what = "; ".join(sockets.differences[:_SHOWN])
    return [f"{DIFFERING}{what}{more}: please report this"] if what else []


def _refused(reasons: Sequence[Reason]) -> Refused:
    return Refused("the tree was not killed, because it could not be woken here", reasons)


def _plan(image: pb.Tree, reader: SnapshotReader, standing: Set[int]) -> None:
    """Compile the plan, with made-up numbers for the descriptors that a restore would open."""
    fds = RestorerFds.imagined(image, reader.blocks)
    make(image, surroundings.here(surroundings.setting(image, standing=standing)), fds)


def _read_back(reader: SnapshotReader) -> None:
    """Compare blocks with their hashes, beginning with those that earlier snapshots wrote."""
    own = next((number for number, pack in enumerate(reader.info.packs) if pack == reader.info.id), -1)
    total = len(reader.blocks)
    pieces = [range(at, min(at + _TOGETHER, total)) for at in range(0, total, _TOGETHER)]
    random.shuffle(pieces)
    pieces.sort(key=lambda piece: reader.blocks.packs[piece[0]] == own)
    deadline = time.monotonic() + SECONDS
    for piece in pieces:
        reader.verify_blocks(piece)
        if time.monotonic() > deadline:
            return
