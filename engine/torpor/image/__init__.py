"""The image of a process tree: what a snapshot holds beside pages. Its schema is image.proto, field by field.

with store.open(snapshot) as reader:
    tree = torpor.image.read(reader)
"""

from torpor.image.image_pb2 import Process, Pty, Tree, Vma
from torpor.image.reading import look, read

__all__ = ["Process", "Pty", "Tree", "Vma", "look", "read"]
