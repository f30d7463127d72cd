"""Park the kernels that jupyter_server would cull: an idle kernel then needs no memory, and its work is not lost."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from jupyter_core.utils import ensure_async

from torpor.errors import TorporError
from torpor_jupyter.kernels.service import Service

_culling: ContextVar[str] = ContextVar("torpor_culling", default="")


def park_when_culling(manager: Any, service: Service) -> None:
    """Make a kernel manager park what it would cull; what cannot be parked stays alive, and the log says why.

    jupyter_server itself decides whether a kernel is idle (cull_kernel_if_idle). Only the shutdown is replaced.
    """
    decide, shut_down = manager.cull_kernel_if_idle, manager.shutdown_kernel

    async def cull_kernel_if_idle(kernel_id: str) -> None:
        if service.registry.state(kernel_id).parked:
            return
        token = _culling.set(kernel_id)
        try:
            await decide(kernel_id)
        finally:
            _culling.reset(token)

    async def shutdown_kernel(kernel_id: str, *arguments: Any, **options: Any) -> None:
        if (
            _culling.get() != kernel_id
            or not service.registry.is_managed(kernel_id)
            or manager.get_kernel(kernel_id).execution_state == "dead"
        ):
            await ensure_async(shut_down(kernel_id, *arguments, **options))
            return
        try:
            await service.park(kernel_id, reason="idle")
        except TorporError as error:
            service.log.warning("Kernel %s is idle, and cannot be parked: %s", kernel_id, error)

    manager.cull_kernel_if_idle = cull_kernel_if_idle
    manager.shutdown_kernel = shutdown_kernel
