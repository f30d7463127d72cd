"""Files rolled back to a checkpoint (`torpor restore --files=rolled-back`).

A job that is woken from an earlier checkpoint finds its database or its output as the later run has left it. Rolled
back is a file that the tree may write, that has changed or grown since, and whose content is in the image
(`torpor.objects.paths.bundle`): it is renamed, so that nothing is lost, and the image's content gets its name, as if
the file were missing. If the restore fails, both are undone.

The journal of an SQLite database is newer than the image's content if the image does not have it: it is renamed with
the database, since SQLite would apply it to the old content.

Refused, because the job would find one of its files further on than others: a file that grew, that the job writes
anywhere, and whose content the image lacks. A file to whose end the job writes stays as it is, with a notice.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, count

from torpor.errors import Reason
from torpor.image import image_pb2 as pb
from torpor.objects.paths import fingerprints
from torpor.objects.paths.file_content import is_sqlite
from torpor.objects.paths.fingerprints import Change, File
from torpor.objects.paths.opener import Opener, Openers

_JOURNALS = (b"-journal", b"-wal", b"-shm")
"""What SQLite adds to the name of a database (https://www.sqlite.org/tempfiles.html)."""


@dataclass
class Rollback:
    """What is to be rolled back."""

    snapshot: str
    """The id of the snapshot: the new names of the present files have its last part."""
    paths: list[bytes] = field(default_factory=list)
    """Files that are to be renamed."""
    notices: list[str] = field(default_factory=list)
    """For the user."""

    def look(self, image: pb.Tree, openers: Openers) -> Iterator[Reason]:
        """Find the files. Yields why a file cannot be rolled back."""
        kept = {bundled.path for bundled in image.bundles}
        in_place = fingerprints.in_place(image)
        named = dict(fingerprints.written(image))
        for path, file in named.items():
            written = (file.dev, file.ino) in in_place
            opener = openers.path(path)
            became, is_database = _look(file, opener, in_place=written)
            if became is Change.NONE:
                continue
            subject = f"the file {os.fsdecode(path)}"
            if path in kept and not opener.may_write_in(os.path.dirname(path)):
                yield Reason(subject, "it cannot be rolled back: this user may not rename files in its directory")
            elif path in kept:
                self.paths.append(path)
                journals = [path + end for end in _JOURNALS] if is_database else []
                self.paths += [one for one in journals if one not in named and os.path.lexists(one)]
            elif became is Change.GROWN and written:
                why = "it grew since the checkpoint, and the snapshot does not have its content"
                yield Reason(subject, why, "save it with --with-files", changed=os.fsdecode(path))
            elif became is Change.GROWN:
                self.notices.append(f"{subject} has grown since, and stays: the snapshot does not have its content")

    def set_aside(self, path: bytes, opener: Opener) -> bytes:
        """Rename a file. Returns its new name."""
        new = path + b".before-" + self.snapshot.rpartition("-")[2].encode()
        for name in chain([new], (b"%s.%d" % (new, number) for number in count(2))):
            with suppress(FileExistsError):
                opener.rename(path, name)
                now, before = os.fsdecode(path), os.fsdecode(name)
                self.notices.append(f"{now} is rolled back; as it was until now it is {before}")
                return name
        raise AssertionError("names do not end")


def _look(file: File, opener: Opener, *, in_place: bool) -> tuple[Change, bool]:
    """What became of a file, and whether it is an SQLite database. A file that is not there has not changed."""
    try:
        fd = opener.open(file.path, os.O_PATH | os.O_NOFOLLOW)
    except OSError:
        return Change.NONE, False  # the validation says what is wrong
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return Change.NONE, False
        return fingerprints.change(file, fd, in_place=in_place), is_sqlite(fd)
    finally:
        os.close(fd)
