"""`make demo`: a Jupyter kernel with work in it is frozen, ended and woken, and goes on as if nothing had happened.

The story is told as it happens, and every claim in it is checked. It is an ordinary user's story: started as
root, it makes a user, is told as that user, and removes the user.
"""

from __future__ import annotations

import ast
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from tests.leaks import MARK
from tests.users import BIN, User, ordinary_user
from torpor.remote.sys import pidfd_open

ROOT = Path(__file__).parents[1]
PATIENCE = 60.0  # seconds for anything that the kernel is asked

WORK = """
import os, threading, time
import numpy as np, pandas as pd

matrix = np.random.default_rng(7).random((1000, 4000))
table = pd.DataFrame({"city": ["Lagos", "Lima", "Oslo"], "people": [15.4, 11.2, 0.7]}).set_index("city")
count = 0
log = open("count.log", "w", buffering=1)

def go_on_counting():
    global count
    while True:
        count += 1
        print(count, file=log)
        time.sleep(0.01)

threading.Thread(target=go_on_counting, daemon=True).start()
"""
STATE = "(os.getpid(), float(matrix.sum()), table.people.to_dict(), count)"


class Failed(Exception):
    """A claim of the story did not hold."""


def say(text: str = "") -> None:
    """One line of the story."""
    print(text, flush=True)


def check(claim: str, holds: bool) -> None:
    """One claim of the story: told, or the end of it."""
    if not holds:
        raise Failed(claim)
    say(f"    true: {claim}")


@contextmanager
def timed(doing: str) -> Iterator[None]:
    """Tell what is done and how long it took."""
    print(f"  {doing} ...", end="", flush=True)
    begun = time.monotonic()
    yield
    say(f" {time.monotonic() - begun:.2f} s")


def torpor(*arguments: str) -> str:
    """Run the command line as a person would, and return what it printed."""
    done = subprocess.run([BIN / "torpor", *arguments], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise Failed(f"`torpor {' '.join(arguments)}` exits with 0 (it was {done.returncode})")
    return done.stdout.strip()


def ask(client: BlockingKernelClient, code: str = "", expression: str = "None") -> Any:
    """Run `code` in the kernel and return the value of `expression` there."""
    message = client.execute(code, user_expressions={"value": expression})
    while True:
        reply: dict[str, Any] = client.get_shell_msg(timeout=PATIENCE)
        if reply["parent_header"].get("msg_id") == message:
            break
    content = reply["content"]
    if content["status"] != "ok" or content["user_expressions"]["value"]["status"] != "ok":
        raise Failed(f"the kernel runs {code or expression!r}: {content}")
    return ast.literal_eval(content["user_expressions"]["value"]["data"]["text/plain"])


def connect(connection_file: str) -> BlockingKernelClient:
    """A client of the kernel that answers on the ports in `connection_file`."""
    client = BlockingKernelClient(connection_file=connection_file)
    client.load_connection_file()
    # Without the heartbeat, by which a kernel that takes more than a second to start is dead.
    client.start_channels(hb=False)
    client.wait_for_ready(timeout=PATIENCE)
    return client


def listens(port: int) -> bool:
    """Whether anyone answers on a port of this host."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def ended(pid: int, patience: float = PATIENCE) -> bool:
    """Wait for a process, which need not be a child, to end; whether it did."""
    try:
        pidfd = pidfd_open(pid)
    except ProcessLookupError:
        return True
    readable, _, _ = select.select([pidfd], [], [], patience)
    os.close(pidfd)
    return bool(readable)


def end(pid: int) -> None:
    """End a process at once if it still runs."""
    if not ended(pid, patience=0):
        os.kill(pid, signal.SIGKILL)
        ended(pid)


def tell(folder: Path, undo: ExitStack) -> None:
    """The story; `undo` receives what must not outlive it."""
    os.chdir(folder)
    os.environ["TORPOR_STORE"] = str(folder / "store")
    say("A Jupyter kernel at work")
    manager = KernelManager(kernel_name="python3", connection_file=str(folder / "kernel.json"))
    with timed("starting a kernel, and loading numpy and pandas in it"), open("kernel.log", "w") as output:
        manager.start_kernel(cwd=str(folder), stdout=output, stderr=output)
        undo.callback(manager.shutdown_kernel, now=True)
        client = connect(manager.connection_file)
        ask(client, WORK)
        ask(client, "while count < 100: time.sleep(0.01)")
    pid, total, people, count = ask(client, expression=STATE)
    say(f"  It is process {pid}. It holds a matrix whose elements sum to {total:.3f}, a table of")
    say(f"  {len(people)} cities, and a thread that counts, {count} so far, and writes each number to an open file.")
    client.stop_channels()

    say("\nFreezing it")
    with timed(f"torpor checkpoint {pid} --then kill"):
        snapshot = torpor("checkpoint", str(pid), "--then", "kill")
    manager.cleanup_resources(restart=True)  # the connection file stays: the kernel will be back
    check("the process is gone", not manager.is_alive())
    check(f"nobody answers on its port {manager.shell_port}", not listens(manager.shell_port))
    written = (folder / "count.log").read_text()
    lines = written.count("\n")
    check(f"the file has {lines} lines, and no one adds to it", (folder / "count.log").read_text() == written)
    torpor("verify", snapshot)
    (kept,) = json.loads(torpor("ls", "--json"))
    say(f"  What is left of it is snapshot {snapshot}, of {kept['size'] / 2**20:.0f} MiB.")

    say("\nWaking it")
    with timed(f"torpor restore {snapshot} --detach"):
        keeper = int(torpor("restore", snapshot, "--detach"))
    undo.callback(end, keeper)
    with timed("connecting to its old ports, with the same connection file"):
        client = connect(str(folder / "kernel.json"))
    now = ask(client, expression=STATE)
    check(f"it is process {pid} again", now[0] == pid)
    check(f"its matrix sums to {total:.3f}", now[1] == total)
    check("its table is the same", now[2] == people)
    check(f"its thread goes on counting: {now[3]}, after {lines} when it was frozen", now[3] >= lines)
    ask(client, f"while count < {now[3] + 20}: time.sleep(0.01)")
    numbers = [int(line) for line in (folder / "count.log").read_text().split()]
    check(
        f"its file goes on: {len(numbers)} lines, not one missing or twice",
        numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= lines + 20,
    )
    answer = ask(client, "matrix *= 2", "float(matrix.sum())")
    check("it works: the doubled matrix sums to twice as much", abs(answer - 2 * total) < 1e-6 * total)
    client.shutdown()
    check("told to end, it ends", ended(keeper))
    client.stop_channels()
    say("\nAll of it by an ordinary user, without any privilege.")


def main() -> int:
    """Tell the story as an ordinary user, in a directory that is gone afterwards."""
    with ordinary_user() as account:
        # Not below root's own TMPDIR, which the user may not be able to enter.
        folder = Path(tempfile.mkdtemp(prefix="torpor-demo-", dir="/tmp"))
        marked = {MARK: os.environ[MARK]} if MARK in os.environ else {}
        user = User(account.pw_name, account.pw_uid, account.pw_gid, folder, marked)
        try:
            user.own(folder)
            if os.geteuid() == user.uid:
                with ExitStack() as undo:
                    tell(folder, undo)
                return 0
            user.home.mkdir()
            user.own(user.home)
            say(f"As the user {user.name}:\n")
            again = user.popen([BIN / "python", "-m", "notebooks.demo"], cwd=ROOT)
            return int(again.wait())
        except Failed as failure:
            say(f"\n    NOT true: {failure}")
            return 1
        except Exception as error:  # of a program that is missing, say: a person gets no traceback
            say(f"\n    The story ends here: {type(error).__name__}: {error}")
            return 1
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
