"""Whether a tree has an IPC namespace of its own."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from torpor.image import image_pb2 as pb
from torpor.objects.sysv.ipc_namespace import IpcNamespace


def described(pid: int) -> pb.Tree:
    tree: Any = SimpleNamespace(processes=[SimpleNamespace(pid=pid)])
    image = pb.Tree()
    part = IpcNamespace()
    part.describe(part.grab(tree), image, {}, pid)
    return image


def test_ours_is_not_its_own() -> None:
    image = described(os.getpid())
    assert not image.own_ipc_namespace
    assert not IpcNamespace().needs_ipc_namespace(image)


def test_another_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    readlink = os.readlink
    monkeypatch.setattr(os, "readlink", lambda path: "ipc:[1]" if path == "/proc/7/ns/ipc" else readlink(path))
    assert IpcNamespace().needs_ipc_namespace(described(7))


def test_a_kernel_without_such_namespaces_has_one_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "exists", lambda _: False)
        assert not described(os.getpid()).own_ipc_namespace
