"""Why a checkpoint was not permitted: what this host denies to everyone, or what protects this process."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from torpor.errors import CheckpointFailed, NotPermitted
from torpor.probe import probe

_WHOLE = "mount a whole one; in a unit of systemd, set ProcSubset=all"
_DENIED = (errno.EPERM, errno.EACCES, errno.ENOSYS)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """If the kernel denies the block something, find out whether this host denies it to everyone.

    Args:
        what: what could not be done; the message begins with it.

    Raises:
        NotPermitted: names what the host denies.
    """
    try:
        yield
    except (NotPermitted, CheckpointFailed) as error:
        cause = error.__cause__
        refused = isinstance(error, NotPermitted) or (isinstance(cause, OSError) and cause.errno in _DENIED)
        if refused and (why := probe().cannot_freeze):
            raise NotPermitted(
                f"{what}: this host does not let Torpor freeze anything: {why}", advice="see `torpor doctor`"
            ) from error
        if isinstance(cause, FileNotFoundError) and not os.path.exists("/proc/sys"):
            found = NotPermitted(f"{what}: this /proc shows processes only (subset=pid)", advice=_WHOLE)
            raise found from error
        raise
