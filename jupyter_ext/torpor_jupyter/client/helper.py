"""Save a kernel that no server with Torpor manages. The kernel starts a helper process, which saves it.

A process cannot stop and read itself. The helper is not a descendant of the kernel while it saves it, so it is not in
the snapshot. It writes its answer to a file. A kernel that is woken from the snapshot finds neither helper nor file.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torpor
from torpor.errors import CheckpointFailed, TorporError
from torpor.processes import start_time

TAG = "notebook-kernel"
"""The tag of a snapshot that holds the PID of the saved kernel."""
BEGIN_SECONDS = 30.0
"""How long the helper may take to start."""
NO_REWIND = (
    "no Jupyter server with Torpor manages this kernel, so it cannot be rewound in place: the program that started it"
    " would see it as dead. End the kernel; then `torpor restore ID` wakes one of its checkpoints under its old"
    " connection file (`jupyter console --existing`)"
)
_PR_SET_PTRACER = 0x59616D61


def checkpoint(name: str) -> str:
    """Save this process by a helper outside of it. Return a message about the result.

    Raises:
        TorporError: as `torpor.checkpoint`.
    """
    with tempfile.TemporaryDirectory(prefix="torpor-") as folder:
        answer, ready = Path(folder, "answer"), Path(folder, "pid")
        # The first process ends at once, so the helper is not a child of this one.
        arguments = [str(os.getpid()), folder, name, json.dumps(_original_stdio())]
        starter = subprocess.run(
            [sys.executable, *torpor.isolation(), "-m", "torpor_jupyter.client.helper", *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        if starter.returncode:
            raise CheckpointFailed("cannot start the helper process", details=starter.stderr[-2000:])
        helper, before = int(ready.read_text()), _this_process()
        # Where Yama lets only ancestors trace, a process may name one other tracer (Documentation/.../Yama.rst).
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(helper), 0, 0, 0)
        Path(folder, "go").touch()
        while not answer.exists():
            if _this_process() != before:
                return "The kernel was woken from this checkpoint."
            if not os.path.exists(f"/proc/{helper}") and not answer.exists():
                raise CheckpointFailed("the helper process ended before it had saved this kernel", advice="try again")
            time.sleep(0.02)
        result = json.loads(answer.read_text())
    if "id" not in result:
        raise CheckpointFailed(result["message"])
    return "\n".join(
        [
            f"Saved as {result['id']}; `torpor restore {result['short']}` wakes it once this kernel has ended.",
            *(f"A wake will not restore everything: {notice}" for notice in result["notices"]),
        ]
    )


def _this_process() -> tuple[int, str, str]:
    """Values that identify this process, some of which differ after a wake: start time, boot id, PID namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    return start_time(os.getpid()), boot, os.readlink("/proc/self/ns/pid")


def _original_stdio() -> dict[int, int]:
    """The descriptors to which ipykernel has copied its original standard output and error (ipykernel.iostream)."""
    found = {}
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        copy = getattr(stream, "_original_stdstream_copy", None)
        if isinstance(copy, int):
            found[copy] = number
    return found


def listed() -> str:
    """List the checkpoints that helpers have made, one line for each. Raises StoreError."""
    from torpor.store import Store  # noqa: PLC0415  not needed if a server manages the kernel

    infos = [info for info in Store().snapshots() if TAG in info.tags]
    return "\n".join(f"{info.id}  {info.tags.get('name', '')}  (PID {info.tags[TAG]})" for info in infos)


def main() -> None:
    """Run as the helper. Arguments: the kernel's PID, the folder, the name, and the result of `_original_stdio`."""
    pid, folder, name = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    stdio = {int(fd): int(number) for fd, number in json.loads(sys.argv[4]).items()}
    if os.fork():
        deadline = time.monotonic() + BEGIN_SECONDS
        while not (folder / "pid").exists():
            if time.monotonic() > deadline:
                sys.exit("the helper process did not start in time")
            time.sleep(0.01)
        return
    os.setsid()
    os.dup2(0, 2)  # the kernel reads standard error until all its writers have closed it
    _write_whole(folder, "pid", str(os.getpid()))
    deadline = time.monotonic() + BEGIN_SECONDS
    while not (folder / "go").exists():
        if time.monotonic() > deadline:
            sys.exit("the kernel did not let the helper begin")
        time.sleep(0.01)
    _write_whole(folder, "answer", json.dumps(_save(pid, name, stdio)))


def _save(pid: int, name: str, stdio: dict[int, int]) -> dict[str, Any]:
    """Save the kernel. Return the answer for it."""
    import torpor  # noqa: PLC0415  needed only here

    if os.getppid() == pid:
        return {"message": "the kernel adopts orphans (PR_SET_CHILD_SUBREAPER), so its snapshot would have the helper"}
    try:
        info = torpor.checkpoint(pid, tags={TAG: str(pid)} | ({"name": name} if name else {}), stdio=stdio)
    except TorporError as error:
        return {"message": str(error)}
    # A kernel's clients reconnect by themselves.
    notices = [notice for notice in info.notices if not torpor.client_ports(notice)]
    return {"id": info.id, "short": info.short, "notices": notices}


def _write_whole(folder: Path, name: str, text: str) -> None:
    # Not torpor.store.write_whole, which syncs the folder: the kernel removes it as soon as it has the answer.
    temporary = folder / f"{name}.new"
    temporary.write_text(text)
    temporary.rename(folder / name)


if __name__ == "__main__":
    main()
