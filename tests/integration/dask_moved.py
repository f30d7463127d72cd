"""A worker's process moves to a node with another address: a program for a network namespace of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import dask
from distributed import wait

from tests.integration.dask_cluster import PATIENCE, cluster, runs, until
from tests.integration.dask_nodes import Node, connected, woken
from tests.integration.dask_tasks import leaf, patient, under_way
from tests.users import BIN


def move(tmp: Path, first: Node, second: Node) -> dict[str, object]:
    """Freeze a worker on one node and wake it on another, in the middle of a task."""
    go, images = tmp / "go", tmp / "images"
    with cluster(tmp, host=first.here, torpor__hold="10 minutes") as cluster_:
        cluster_.start_scheduler()
        client = cluster_.client
        process = cluster_.start_worker("wanderer", threads=1, host="0.0.0.0", within=first.within)
        client.wait_for_workers(1, PATIENCE)
        before = list(cluster_.info())
        with dask.annotate(torpor="never"):
            data = client.submit(leaf, 7, str(cluster_.log))
            wait(data, PATIENCE)
            task = client.submit(patient, str(cluster_.log), str(go), data)
        until("the task", lambda: client.run_on_scheduler(under_way, key=task.key))
        freeze = ["checkpoint", str(process.pid), "--then", "kill", "--store", str(images)]
        subprocess.run([*first.within, BIN / "torpor", *freeze], check=True, stdout=subprocess.DEVNULL)
        process.wait()
        del cluster_.workers["wanderer"]
        with woken(tmp, "latest", *second.within):
            until("the return", lambda: cluster_.counters()["returned"])
            after = list(cluster_.info())
            go.touch()
            answer = task.result(PATIENCE)
            told = {"before": before, "after": after, "answer": answer, "runs": runs(cluster_.log)[task.key]}
        cluster_.stop()
        return told


if __name__ == "__main__":
    with connected(1) as one, connected(2) as other:
        print(json.dumps(move(Path(sys.argv[1]), one, other)))
