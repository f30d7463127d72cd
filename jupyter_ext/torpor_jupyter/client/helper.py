"""Save a kernel that no server with Torpor manages: by a helper process that the kernel starts.

A process cannot stop and read itself. The helper is not a child of the kernel when it saves it, so the snapshot does
not contain the helper. The helper answers by a file. A kernel that is woken from the snapshot finds neither the helper
nor the file.
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

from torpor.errors import CheckpointFailed, TorporError
from torpor.processes import start_time

TAG = "notebook-kernel"
"""The tag of a snapshot that has the PID of the kernel which asked for it."""
BEGIN_SECONDS = 30.0
"""How long the helper may take to begin."""
NO_REWIND = (
    "no Jupyter server with Torpor looks after this kernel, so that it cannot go back in place: the program that"
    " started it would take it for dead. End it, and `torpor restore ID` wakes a checkpoint of it under its old"
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
        # The first process ends at once: the helper is then no child of this one.
        arguments = [str(os.getpid()), folder, name, json.dumps(_original_stdio())]
        starter = subprocess.run(
            [sys.executable, "-m", "torpor_jupyter.client.helper", *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        if starter.returncode:
            raise CheckpointFailed("cannot start the helper process", details=starter.stderr[-2000:])
        helper, before = int(ready.read_text()), _this_process()
        # Where Yama lets only ancestors trace, a process can name another one that may (Documentation/.../Yama.rst).
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(helper), 0, 0, 0)
        Path(folder, "go").touch()
        while not answer.exists():
            if _this_process() != before:
                return "The kernel was woken from this checkpoint."
            if not os.path.exists(f"/proc/{helper}") and not answer.exists():
                raise CheckpointFailed("the helper that was to save this kernel has ended", advice="try again")
            time.sleep(0.02)
        result = json.loads(answer.read_text())
    if "id" not in result:
        raise CheckpointFailed(result["message"])
    return "\n".join(
        [
            f"Saved as {result['id']}; `torpor restore {result['short']}` wakes it once this kernel has ended.",
            *(f"A wake will not bring back everything: {notice}" for notice in result["notices"]),
        ]
    )


def _this_process() -> tuple[int, str, str]:
    """What identifies this process, and is different after a wake: start time, boot id, and PID namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    return start_time(os.getpid()), boot, os.readlink("/proc/self/ns/pid")


def _original_stdio() -> dict[int, int]:
    """The descriptors at which ipykernel keeps what was its standard output and error (ipykernel.iostream)."""
    found = {}
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        copy = getattr(stream, "_original_stdstream_copy", None)
        if isinstance(copy, int):
            found[copy] = number
    return found


def listed() -> str:
    """The checkpoints that helpers have made, one line for each. Raises StoreError."""
    from torpor.store import Store  # noqa: PLC0415  not needed below a server

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
                sys.exit("the helper does not begin")
            time.sleep(0.01)
        return
    os.setsid()
    os.dup2(0, 2)  # the kernel waits for the end of the starter's standard error
    _write_whole(folder, "pid", str(os.getpid()))
    deadline = time.monotonic() + BEGIN_SECONDS
    while not (folder / "go").exists():
        if time.monotonic() > deadline:
            sys.exit("nobody says go")
        time.sleep(0.01)
    _write_whole(folder, "answer", json.dumps(_save(pid, name, stdio)))


def _save(pid: int, name: str, stdio: dict[int, int]) -> dict[str, Any]:
    """Save the kernel. Return the answer for it."""
    import torpor  # noqa: PLC0415  only here it is needed

    if os.getppid() == pid:
        return {"message": "the kernel adopts orphans (PR_SET_CHILD_SUBREAPER): a helper cannot stand outside of it"}
    try:
        info = torpor.checkpoint(pid, tags={TAG: str(pid)} | ({"name": name} if name else {}), stdio=stdio)
    except TorporError as error:
        return {"message": str(error)}
    # Clients of a kernel connect again by themselves.
    notices = [notice for notice in info.notices if not torpor.client_ports(notice)]
    return {"id": info.id, "short": info.short, "notices": notices}


def _write_whole(folder: Path, name: str, text: str) -> None:
    temporary = folder / f"{name}.new"
    temporary.write_text(text)
    temporary.rename(folder / name)


if __name__ == "__main__":
    main()
