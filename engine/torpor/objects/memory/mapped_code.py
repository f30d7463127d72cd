"""What a process's code may know: searched in the files that it has mapped, and only when a restore needs to know.

Memory that the process has written itself is not searched.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

from torpor.image import image_pb2 as pb
from torpor.objects.memory.mapped_files import is_there
from torpor.objects.paths import bundle
from torpor.objects.paths.opener import Openers

_AT_ONCE = 1 << 20
"""Bytes of a file to read at once."""


class MappedCode:
    """The programs and libraries of an image; each is searched once for the same words."""

    def __init__(self, image: pb.Tree, openers: Openers) -> None:
        self._image, self._openers = image, openers
        self._bundled = bundle.by_path(image)
        self._found: dict[tuple[int, bytes], bool] = {}

    def with_word(self, process: pb.Process, word: bytes) -> list[str]:
        """The files that a process executes and that have `word` in them, or that are not here to be read."""
        return [os.fsdecode(self._image.files[index].path) for index in _executed(process) if self._has(index, word)]

    def _has(self, index: int, word: bytes) -> bool:
        key = index, word
        if key not in self._found:
            file = self._image.files[index]
            try:
                gone = file.path in self._bundled and not is_there(file, self._openers.file(index))
                self._found[key] = gone or self._read(index, file, word)
            except OSError:  # another reason for a refusal, or a file that nobody may read
                self._found[key] = True
        return self._found[key]

    def _read(self, index: int, file: pb.FileRef, word: bytes) -> bool:
        # O_NONBLOCK: the name may now belong to a FIFO.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
        fd = self._openers.file(index).open(file.path, flags, known=(file.dev, file.ino))
        try:
            return has_word(fd, word)
        finally:
            os.close(fd)


def has_word(fd: int, word: bytes) -> bool:
    """Whether a file contains `word`."""
    position, end = 0, b""
    while more := os.pread(fd, _AT_ONCE, position):
        if word in end + more:
            return True
        end, position = more[len(more) - len(word) + 1 :], position + len(more)
    return False


def _executed(process: pb.Process) -> Iterator[int]:
    """The files of which a process has code mapped, each once."""
    kinds = (pb.Vma.FILE_PRIVATE, pb.Vma.FILE_SHARED)
    vmas = (vma for vma in process.memory.vmas if vma.kind in kinds and vma.prot & mmap.PROT_EXEC)
    return iter(dict.fromkeys(vma.file for vma in vmas))
