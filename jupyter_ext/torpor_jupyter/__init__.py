"""Torpor in Jupyter: kernels that can be frozen, kept and woken, from the server and from JupyterLab."""

from __future__ import annotations

from typing import Any


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    """Tell jupyter_server which class to load (jupyter_server.extension)."""
    from torpor_jupyter.server.app import TorporApp  # noqa: PLC0415  only a server needs it

    return [{"module": "torpor_jupyter", "app": TorporApp}]


def _jupyter_labextension_paths() -> list[dict[str, str]]:
    """Tell JupyterLab's tools where the prebuilt extension is (jupyterlab.federated_labextensions)."""
    return [{"src": "static", "dest": "torpor"}]
