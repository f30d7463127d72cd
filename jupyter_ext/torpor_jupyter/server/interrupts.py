"""Interrupt a parked kernel: it has no process, so the cells that wait for it are aborted, and their pages are told.

A cell that was running when the kernel was parked continues after the wake, and can be interrupted then.
"""

from __future__ import annotations

from typing import Any

from jupyter_core.utils import ensure_async

from torpor_jupyter.kernels.service import Service


def interrupt_parked(manager: Any, service: Service) -> None:
    """Make a kernel manager pass the interrupt of a parked kernel to Torpor's service."""
    interrupt = manager.interrupt_kernel

    async def interrupt_kernel(kernel_id: str, *arguments: Any, **options: Any) -> None:
        if not service.interrupt_parked(kernel_id):
            await ensure_async(interrupt(kernel_id, *arguments, **options))

    manager.interrupt_kernel = interrupt_kernel
