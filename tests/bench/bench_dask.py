"""Dask with Torpor against stock Dask in the same run: ``python -m tests.bench.bench_dask``.

Overhead on tasks that run through, and what one killed worker costs in the middle of a graph of 149 tasks.
Rounds of the two alternate, and which of them begins, so that a busy machine troubles both alike; medians of ratios of
neighbours are told, of the time that passed and of the processor time that scheduler and workers took.
"""

from __future__ import annotations

import argparse
import json
import os
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


def cpu(cluster: Cluster) -> float:
    """Seconds of processor time that scheduler and workers have taken."""
    ticks = 0
    for process in (cluster.scheduler, *cluster.workers.values()):
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # utime, stime
    return ticks / os.sysconf("SC_CLK_TCK")


def overhead(work: Callable[[Client, int], None], folder: Path, rounds: int) -> dict[str, float]:
    """Give seconds of stock and ours, and the median of their ratios; and of their processor time."""
    clusters = []
    for name, settings in (("stock", STOCK), ("ours", OURS)):
        place = folder / f"{work.__name__}-{name}"
        place.mkdir()
        clusters.append(Cluster(place, {**UNCHECKED, **settings}).start(2, 1))
    try:
        times: list[list[float]] = [[], []]
        loads: list[list[float]] = [[], []]
        for turn in range(rounds + 1):
            for which in (0, 1) if turn % 2 else (1, 0):
                begin, before = time.perf_counter(), cpu(clusters[which])
                work(clusters[which].client, turn)
                if turn:  # the first is for warming up
                    times[which].append(time.perf_counter() - begin)
                    loads[which].append(cpu(clusters[which]) - before)
        ratios, cpu_ratios = ([ours / stock for stock, ours in zip(*found, strict=True)] for found in (times, loads))
        kept = clusters[1].counters()["kept"]
        return {
            "stock": statistics.median(times[0]),
            "ours": statistics.median(times[1]),
            "ratio": statistics.median(ratios),
            "processor ratio": statistics.median(cpu_ratios),
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
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", default="", help="a part of the names of what is measured")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        works: list[tuple[str, Callable[[Client, int], None]]] = [
            ("3000 tiny tasks", many_tiny),
            ("60 tasks of 16 MiB, at once", large_quick),
            ("60 tasks of 16 MiB, 0.3 s each", large),
        ]
        for words, work in works:
            if options.only not in words:
                continue
            found[words] = overhead(work, folder, options.rounds)
        for words, config in (
            ("stock", STOCK), ("write-behind", {}), ("write-through", {"torpor.write_through": True})
        ):  # fmt: skip
            if options.only in (name := f"one SIGKILL in 149 tasks, {words}"):
                found[name] = loss(folder / words, config)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    table = Table("what", "figures")
    for words, figures in found.items():
        table.add_row(words, "  ".join(f"{name} {value:.3g}" for name, value in figures.items()))
    Console().print(table)


if __name__ == "__main__":
    main()
