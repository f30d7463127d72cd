"""A worker's node falls silent in the middle of a graph: a program for a network namespace of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from distributed import Client, wait

from tests.integration.dask_cluster import PATIENCE, cluster, runs, until
from tests.integration.dask_nodes import Node, connected
from tests.integration.dask_tasks import leaf, patient

LEAVES = 20


def lose_a_node(tmp: Path, node: Node) -> dict[str, object]:
    """Let the node of one of two workers fall silent in the middle of a graph: half of its results are there."""
    go = tmp / "go"
    with cluster(tmp, host=node.here, distributed__comm__timeouts__tcp="11s") as dask:  # Dask takes no less
        dask.start_scheduler()
        dask.start_worker("near")
        dask.start_worker("far", host=node.address, within=node.within)
        client = dask.client
        client.wait_for_workers(2, PATIENCE)
        leaves = [
            client.submit(leaf, number, str(dask.log), workers=["near", "far"][number % 2], allow_other_workers=True)
            for number in range(LEAVES)
        ]
        wait(leaves, PATIENCE)
        dask.until_kept(*(future.key for future in leaves))
        until("results of the far worker", lambda: far_results(client, node))
        tasks = [client.submit(patient, str(dask.log), str(go), future) for future in leaves]
        until("a task", lambda: runs(dask.log).total() > LEAVES)
        node.fall_silent()
        stored = {str(kept.key) for kept in dask.kept()}
        go.touch()
        answer = sum(task.result(PATIENCE) for task in tasks)
        again = {key for key, count in runs(dask.log).items() if count > 1}
        told = {
            "answer": answer,
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
