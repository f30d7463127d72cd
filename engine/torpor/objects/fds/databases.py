"""Transactions of SQLite that are under way in a tree.

Between transactions a program keeps nothing of a database that it does not check when the next one begins, so a woken
tree may find another content (files.py). In a transaction it does: a snapshot of that moment can be woken only while
the database is as it was. It is not for long if the tree runs on; and if the tree ends, the next program that opens the
database rolls the transaction back. Most take milliseconds: IPython writes the history of all kernels of a user, in a
transaction after each cell. So a save waits for the end of one, but not for long.

Documented in: "File Locking And Concurrency In SQLite Version 3" (https://www.sqlite.org/lockingv3.html) and the lock
bytes and the header in https://www.sqlite.org/fileformat.html.
"""

from __future__ import annotations

from torpor.errors import NO_ROOM, Reason, Refused
from torpor.objects.fds import locks
from torpor.objects.fds.files import SQLITE
from torpor.objects.kind import FdReference, GrabbedDescriptors, name

_PENDING, _SHARED_LAST = 0x40000000, 0x40000000 + 511
"""The bytes that are locked in a transaction, from the pending byte to the last of the shared ones."""
_READ_VERSION, _WAL = 19, 2
"""Where the header says how it is read, and the value for a write-ahead log: then it is locked as long as it is open,
and transactions are seen in another file."""


class InTransaction(Refused):
    """The tree is in a transaction, which may be over in a moment."""


def transactions(tree: GrabbedDescriptors) -> list[Reason]:
    """Find the databases of a frozen tree that are in a transaction."""
    found: dict[tuple[int, int], Reason] = {}
    for holder, lines in tree.locked.items():
        held = tree.by_holder[holder]
        key = held.stat.st_dev, held.stat.st_ino
        if key in found or id(held) in tree.lease_signals:  # to open that one would break its lease
            continue
        if any(_PENDING <= lock.start <= _SHARED_LAST for lock in locks.parse(lines)) and _is_database(holder):
            why = "a transaction of SQLite is under way in it"
            found[key] = Reason(f"{name(holder)} ({held.link})", why, "try again", passing=True)
    return list(found.values())


def notice(transaction: Reason) -> str:
    """What it means for a snapshot: a sentence for the user."""
    return (
        f"{transaction.subject}: {transaction.why}: this snapshot can be woken only as long as the file is as it is now"
    )


def _is_database(holder: FdReference) -> bool:
    try:
        with open(f"/proc/{holder.pid}/fd/{holder.fd}", "rb", buffering=0) as file:
            header = file.read(_READ_VERSION + 1)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
        return True  # it cannot be read: it is locked as a database is
    # A new database is empty until its first transaction is over.
    return not header or (header.startswith(SQLITE) and header[_READ_VERSION] != _WAL)
