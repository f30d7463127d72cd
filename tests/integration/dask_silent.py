"""A worker's node falls silent in the middle of a graph: a program for a network namespace of its own."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from distributed import Client

from tests.integration.dask_cluster import PATIENCE, cluster, runs, tree, until
from tests.integration.dask_nodes import Node, connected

LEAVES = 40


def lose_a_node(tmp: Path, node: Node) -> dict[str, object]:
    """Let the node of one of two workers fall silent in the middle of a graph."""
    with cluster(tmp, host=node.here, distributed__comm__timeouts__tcp="11s") as dask:  # Dask takes no less
        dask.start_scheduler()
        dask.start_worker("near")
        dask.start_worker("far", host=node.address, within=node.within)
        dask.client.wait_for_workers(2, PATIENCE)
        result = tree(dask.client, dask.log, leaves=LEAVES)
        until("half of the graph", lambda: runs(dask.log).total() >= LEAVES)
        until("results of the far worker", lambda: far_results(dask.client, node))
        node.fall_silent()
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


def far_results(client: Client, node: Node) -> int:
    """How many results the far worker holds."""
    return sum(len(keys) for address, keys in client.has_what().items() if node.address in address)


if __name__ == "__main__":
    with connected(1) as silent_node:
        print(json.dumps(lose_a_node(Path(sys.argv[1]), silent_node)))
