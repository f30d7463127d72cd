"""The image of a process tree: everything in a snapshot but the pages. image.proto documents each field.

with store.open(snapshot) as reader:
    tree = torpor.image.read(reader)
"""

from torpor.image.image_pb2 import Process, Pty, Tree, Vma
from torpor.image.reading import look, read

__all__ = ["Process", "Pty", "Tree", "Vma", "look", "read"]
