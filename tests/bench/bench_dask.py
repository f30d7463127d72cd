"""Dask with Torpor against stock Dask in the same run: ``python -m tests.bench.bench_dask``.

Overhead on tasks that run through, and what one killed worker costs in the middle of a graph of 149 tasks.
Rounds of the two alternate, so that a busy machine troubles both alike; medians of ratios of neighbours are told.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client
from rich.console import Console
from rich.table import Table

from tests.integration.dask_cluster import Cluster, runs, tree, until

UNCHECKED: dict[str, Any] = {"distributed.scheduler.validate": False, "distributed.worker.validate": False}
STOCK: dict[str, Any] = {"distributed.scheduler.preload": "[]"}
OURS: dict[str, Any] = {"torpor.min_duration": "100ms"}  # the default
MIB = 1 << 20


def tiny(number: int) -> int:
    return number + 1


def block(number: int, seconds: float) -> Any:
    time.sleep(seconds)
    return np.full(2 * MIB, float(number))  # 16 MiB


def many_tiny(client: Client, turn: int) -> None:
    client.gather(client.map(tiny, range(turn * 3000, turn * 3000 + 3000)))


def large_quick(client: Client, turn: int) -> None:
    """60 tasks of 16 MiB that take no time: by default they are not worth keeping."""
    for start in range(0, 60, 12):
        futures = client.map(block, range(60 * turn + start, 60 * turn + start + 12), seconds=0.0)
        client.gather(client.map(np.sum, futures))


def large(client: Client, turn: int) -> None:
    """60 tasks of 16 MiB that take 0.3 s each, which are kept."""
    for start in range(0, 60, 12):
        futures = client.map(block, range(60 * turn + start, 60 * turn + start + 12), seconds=0.3)
        client.gather(client.map(np.sum, futures))


def overhead(work: Callable[[Client, int], None], folder: Path, rounds: int) -> dict[str, float]:
    """Give seconds of stock and ours, and the median of their ratios."""
    clusters = []
    for name, settings in (("stock", STOCK), ("ours", OURS)):
        place = folder / f"{work.__name__}-{name}"
        place.mkdir()
        clusters.append(Cluster(place, {**UNCHECKED, **settings}).start(2, 1))
    try:
        times: list[list[float]] = [[], []]
        for turn in range(rounds + 1):
            for cluster, found in zip(clusters, times, strict=True):
                begin = time.perf_counter()
                work(cluster.client, turn)
                if turn:  # the first is for warming up
                    found.append(time.perf_counter() - begin)
        ratios = [ours / stock for stock, ours in zip(*times, strict=True)]
        kept = clusters[1].counters()["kept"]
        return {
            "stock": statistics.median(times[0]),
            "ours": statistics.median(times[1]),
            "ratio": statistics.median(ratios),
            "kept": kept,
        }
    finally:
        for cluster in clusters:
            cluster.stop()


def loss(folder: Path, config: dict[str, Any]) -> dict[str, float]:
    """Kill one of two workers in the middle of 149 tasks; count the bodies that ran again, and those stored before."""
    folder.mkdir()
    cluster = Cluster(folder, config).start(2, 2)
    try:
        result = tree(cluster.client, cluster.log)
        until("half of the graph", lambda: runs(cluster.log).total() >= 75)
        cluster.kill("w10")
        stored = {str(kept.key) for kept in cluster.kept()}
        lines = runs(cluster.log).total()
        result.result(120)
        again = {key for key, count in runs(cluster.log).items() if count > 1}
        late = set(cluster.log.read_text().splitlines()[lines:])
        return {"again": len(again), "stored": len(stored), "stored again": len(stored & late)}
    finally:
        cluster.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        works: list[tuple[str, Callable[[Client, int], None]]] = [
            ("3000 tiny tasks", many_tiny),
            ("60 tasks of 16 MiB, at once", large_quick),
            ("60 tasks of 16 MiB, 0.3 s each", large),
        ]
        for words, work in works:
            found[words] = overhead(work, folder, options.rounds)
        for words, config in (
            ("stock", STOCK), ("write-behind", {}), ("write-through", {"torpor.write_through": True})
        ):  # fmt: skip
            found[f"one SIGKILL in 149 tasks, {words}"] = loss(folder / words, config)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    table = Table("what", "figures")
    for words, figures in found.items():
        table.add_row(words, "  ".join(f"{name} {value:.3g}" for name, value in figures.items()))
    Console().print(table)


if __name__ == "__main__":
    main()
