"""Transactions of SQLite that are under way in a tree.

When a transaction begins, SQLite checks everything that it has cached of the database. So between transactions a woken
tree may find other content (files.py). Within a transaction SQLite relies on it: a snapshot of that moment can be woken
only while the database stays as it was. That does not last. If the tree runs on, it changes the database itself; if it
ends, the next program that opens the database rolls the transaction back. Most transactions take milliseconds: after
each cell, IPython writes to the history of all kernels of a user. So a save waits for the end of a transaction, but not
for long.

Documented in: "File Locking And Concurrency In SQLite Version 3" (https://www.sqlite.org/lockingv3.html) and the lock
bytes and the header in https://www.sqlite.org/fileformat.html.
"""

from __future__ import annotations

from torpor.errors import NO_ROOM, Reason, Refused
from torpor.objects.fds import locks
from torpor.objects.kind import FdReference, GrabbedDescriptors, descriptor_name
from torpor.objects.paths.file_content import SQLITE
from torpor.objects.paths.same_file import key_of

_PENDING, _SHARED_LAST = 0x40000000, 0x40000000 + 511
"""The bytes that are locked in a transaction, from the pending byte to the last of the shared ones."""
_READ_VERSION, _WAL = 19, b"\2"
"""The offset of the read version in the header, and its value for a write-ahead log. A database with such a log is
locked as long as it is open, and its transactions show in another file.
"""


class InTransaction(Refused):
    """The tree is in a transaction, which may be over in a moment."""


def transactions(tree: GrabbedDescriptors) -> list[Reason]:
    """Find the databases of a frozen tree that are in a transaction."""
    found: dict[tuple[int, int], Reason] = {}
    for holder, lines in tree.locked.items():
        open_file = tree.by_reference[holder]
        key = key_of(open_file.stat)
        if key in found or open_file.leased:  # opening the file would break its lease
            continue
        if any(_PENDING <= lock.start <= _SHARED_LAST for lock in locks.parse(lines)) and _is_database(holder):
            why = "a transaction of SQLite is under way in it"
            found[key] = Reason(f"{descriptor_name(holder)} ({open_file.link})", why, "try again", passing=True)
    return list(found.values())


def notice(transaction: Reason) -> str:
    """Tell the user, in a sentence, what a transaction means for the snapshot."""
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
        return True  # unreadable, but it has the locks of a database
    # A new database is empty until its first transaction is over.
    return not header or (header.startswith(SQLITE) and header[_READ_VERSION:] != _WAL)
