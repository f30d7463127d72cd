"""The image of a process tree: everything in a snapshot but the pages. image.proto documents each field.

with store.open(snapshot) as reader:
    tree = torpor.image.read(reader)
"""

from torpor.image.comparison import Comparison, FileChange, MemoryChange, ProcessChange, compare
from torpor.image.image_pb2 import Process, Pty, Tree, Vma
from torpor.image.page_tables import Piece, pieces
from torpor.image.reading import look, read

__all__ = [
    "Comparison",
    "FileChange",
    "MemoryChange",
    "Piece",
    "Process",
    "ProcessChange",
    "Pty",
    "Tree",
    "Vma",
    "compare",
    "look",
    "pieces",
    "read",
]
