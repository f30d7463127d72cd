"""What cannot be woken is not killed: the image of a tree that is to end is held against this host, as a restore would.

The manifest is read back from the store with all its checks, every pack that it names is opened, and the image is
checked and compiled to a plan, all before the snapshot has its name. What only the living tree stands in the way of
(its PIDs, ports, names and locks) does not count.

Its blocks were hashed as they were written, a moment ago. Of them, and of those that lie in earlier packs, as many are
read back as can be in `SECONDS`: all of them up to some hundreds of MiB, and of more a sample. A grace time that is
nearly over is not spent on reading gigabytes twice.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence, Set

from torpor.errors import ImageDamaged, Reason, Refused, RestoreFailed, RestoreRefused
from torpor.image import image_pb2 as pb
from torpor.image import reading
from torpor.probe import probe
from torpor.restorer import surroundings
from torpor.restorer.plan import RestorerFds, make
from torpor.restorer.validation import check_abilities, refuse
from torpor.store import SnapshotReader

SECONDS = 0.2
"""For reading blocks back; the first of them are read in any case."""
_TOGETHER = 256
"""Blocks that are read back one after the other."""


def foresee() -> None:
    """Look at what no image is needed for: whether this host can wake anything.

    Raises:
        Refused: it cannot.
    """
    if reasons := list(check_abilities(probe())):
        raise _refused(reasons)


def prove(reader: SnapshotReader, standing: Set[int]) -> None:
    """Hold a snapshot against this host.

    Args:
        reader: of what is on disk.
        standing: the processes and threads of the tree, which still lives, as this process sees them.

    Raises:
        Refused: a restore here would be refused, for these reasons.
        ImageDamaged, StoreError: it cannot be read back.
    """
    image = reading.read(reader)
    given = os.pipe2(os.O_CLOEXEC)  # whoever restores gives something for 0, 1 and 2
    try:
        refuse(image, reader.info.id, probe(), (given[0], given[1], given[1]), standing=True)
        _plan(image, reader, standing)
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


def _refused(reasons: Sequence[Reason]) -> Refused:
    return Refused("it could not be woken here, so it was not ended", reasons)


def _plan(image: pb.Tree, reader: SnapshotReader, standing: Set[int]) -> None:
    """Compile it, with numbers for the descriptors that a restore would open."""
    held = RestorerFds.imagined(image, reader.blocks)
    make(image, surroundings.here(surroundings.setting(image, standing=standing)), held)


def _read_back(reader: SnapshotReader) -> None:
    """Compare blocks with their hashes, those that earlier snapshots wrote first."""
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
