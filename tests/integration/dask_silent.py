"""A worker's node falls silent: a program for a network namespace of its own, run by test_dask_faults.py.

The node is a second namespace. It falls silent when each side's neighbour table has a false address for the other:
packets go out and arrive nowhere, and no one is told. `python -m tests.integration.dask_silent FOLDER` prints what
came of it as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from distributed import Client

from tests.integration.dask_cluster import PATIENCE, cluster, runs, tree, until

HERE, THERE, NOBODY = "10.77.0.1", "10.77.0.2", "02:00:00:00:00:99"
LEAVES = 40
NO_VETH = 77
"""Exit code: the kernel has no veth."""


def ip(*words: str, node: tuple[str, ...] = ()) -> None:
    subprocess.run([*node, "ip", *words], check=True)


def main(tmp: Path) -> None:
    holder = subprocess.Popen(["unshare", "--net", "--kill-child", "--fork", "sleep", "infinity"])
    try:
        own = os.readlink("/proc/self/ns/net")
        until("the node", lambda: os.readlink(f"/proc/{holder.pid}/ns/net") != own)
        node = ("nsenter", "--target", str(holder.pid), "--net")
        made = subprocess.run(
            ["ip", "link", "add", "here", "type", "veth", "peer", "name", "there", "netns", str(holder.pid)],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        if made.returncode:
            print(made.stderr, file=sys.stderr)
            sys.exit(NO_VETH)
        for device, address, where in (("here", HERE, ()), ("there", THERE, node)):
            ip("address", "add", f"{address}/24", "dev", device, node=where)
            for name in (device, "lo"):
                ip("link", "set", name, "up", node=where)
        print(json.dumps(lose_a_node(tmp, node)))
    finally:
        holder.kill()
        holder.wait()


def lose_a_node(tmp: Path, node: tuple[str, ...]) -> dict[str, object]:
    """Let the node of one of two workers fall silent in the middle of a graph."""
    with cluster(tmp, host=HERE, distributed__comm__timeouts__tcp="11s") as dask:  # Dask takes no less
        dask.start_scheduler()
        dask.start_worker("near")
        dask.start_worker("far", host=THERE, within=node)
        dask.client.wait_for_workers(2, PATIENCE)
        result = tree(dask.client, dask.log, leaves=LEAVES)
        until("half of the graph", lambda: runs(dask.log).total() >= LEAVES)
        until("results of the far worker", lambda: far_results(dask.client))
        ip("neighbour", "replace", THERE, "lladdr", NOBODY, "nud", "permanent", "dev", "here")
        ip("neighbour", "replace", HERE, "lladdr", NOBODY, "nud", "permanent", "dev", "there", node=node)
        silent = time.monotonic()
        stored = {str(kept.key) for kept in dask.kept()}
        answer = result.result(PATIENCE)
        waited = time.monotonic() - silent
        again = {key for key, count in runs(dask.log).items() if count > 1}
        told = {
            "answer": answer,
            "waited": waited,
            "stored": len(stored),
            "loaded": dask.loaded(),
            "stored and run again": sorted(stored & again),
            "workers": [worker["name"] for worker in dask.info().values()],
        }
        dask.kill("far")
        dask.stop()
        return told


def far_results(client: Client) -> int:
    """How many results the far worker holds."""
    return sum(len(keys) for address, keys in client.has_what().items() if THERE in address)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
