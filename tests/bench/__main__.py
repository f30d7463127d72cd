"""Freeze, publish, kill and restore each target; print times and their ratios to the machine's own."""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

import torpor
from torpor import Job, Stats, procfs
from torpor.store import SnapshotInfo, Store

from . import machine
from .targets import TARGETS, Target, array, end, write

MIB = 1 << 20


def measure(target: Target, folder: Path, rounds: int) -> dict[str, float]:
    """The median of each figure over some rounds, in seconds and bytes."""
    found: list[dict[str, float]] = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            found.append(_round(target, Path(place)))
    return {name: statistics.median(one[name] for one in found) for name in found[0]}


def _round(target: Target, place: Path) -> dict[str, float]:
    store, second = Store(place / "store"), Store(place / "second")
    process = target.start()
    first, again = Stats(), Stats()
    try:
        cpu = time.process_time()
        snapshot = torpor.checkpoint(process.pid, store=store, stats=first)
        cpu = time.process_time() - cpu
        plain = machine.write_seconds(place, max(snapshot.written, MIB))
        with torpor.Series() as series:
            torpor.checkpoint(process.pid, store=store, series=series)
            if target.writes:
                write(process)
            next_one = torpor.checkpoint(process.pid, store=store, series=series, stats=again)
        last = torpor.checkpoint(process.pid, store=second, then="kill")
    finally:
        end(process)
    restored, restored_cpu, memory, stages = _restored(last, second)
    found = {
        "pause": first.pause_ns / 1e9,
        "published": first.total_ns / 1e9,
        "published_cpu": cpu,
        "plain": plain,
        "again": again.total_ns / 1e9,
        "again_pause": again.pause_ns / 1e9,
        "again_written": float(next_one.written),
        "written": float(snapshot.written),
        "restored": restored,
        "restored_cpu": restored_cpu,
        "restored_memory": memory,
    }
    if target.size:
        found["populate"] = machine.populate_seconds(target.size)
    for name in ("look", "pause", "write", "publish"):
        found[f"stage_{name}"] = getattr(first, f"{name}_ns") / 1e9
    return found | {f"restore_{name}": seconds for name, seconds in stages.items()}


_STAGES = {
    "reading.read": "read",
    "restore._validate": "validate",
    "restore._Material.__init__": "open",
    "plan.make": "plan",
    "execution.Builder.create_processes": "create",
    "execution.Builder._fill": "fill",
    "execution.Builder.build": "build",
    "execution.Builder.settle": "settle",
    "integrity.Verification.finish": "compare",
    "verification.look": "verify",
    "execution.Builder.release": "release",
}
"""The stages of a restore, by their functions. `build` is without `fill`."""


def _restored(snapshot: SnapshotInfo, store: Store) -> tuple[float, float, float, dict[str, float]]:
    """Restore a snapshot twice: for its times and the memory of all processes; and for its stages, with a
    profiler.
    """
    null = os.open(os.devnull, os.O_RDWR)

    def restore() -> Job:
        return torpor.restore(snapshot, store=store, stdio=(null, null, null))

    try:
        begin, cpu = time.perf_counter(), time.process_time()
        job = restore()
        seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
        memory = sum(_own_memory(pid) for pid in _tree(job.pid))
        job.send_signal(signal.SIGKILL)
        job.wait()
        profile = cProfile.Profile()
        job = profile.runcall(restore)
        job.send_signal(signal.SIGKILL)
        job.wait()
    finally:
        os.close(null)
    stages: dict[str, float] = {}
    for (file, _, function), (*_, cumulative, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        for name, stage in _STAGES.items():
            module, _, method = name.partition(".")
            if Path(file).stem == module and function == method.rpartition(".")[2]:
                stages[stage] = stages.get(stage, 0) + cumulative
    if "build" in stages:
        stages["build"] -= stages.get("fill", 0)
    return seconds, cpu, memory, stages


def _tree(pid: int) -> list[int]:
    """A process and all below it."""
    below = [one for tid in procfs.threads(pid) for one in procfs.children(pid, [tid])]
    return [pid, *(found for one in below for found in _tree(one))]


def _own_memory(pid: int) -> float:
    """The bytes of a process; of a page that several share, its part."""
    text = procfs.read(f"/proc/{pid}/smaps_rollup")
    return float(next(line for line in text.splitlines() if line.startswith(b"Pss:")).split()[1]) * 1024


SHARES = (0.001, 0.01, 0.1, 0.5)
_IN_SHARES = 1024
"""MiB of the program that writes a share of its pages."""


def by_share(folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """What a save in a series costs, by the share of the pages that was written: the least of some rounds."""
    found: dict[str, dict[str, float]] = {}
    for share in SHARES:
        process = array(_IN_SHARES, share).start()
        figures: list[dict[str, float]] = []
        try:
            with tempfile.TemporaryDirectory(dir=folder) as place, torpor.Series() as series:
                torpor.checkpoint(process.pid, store=place, series=series)
                for _ in range(rounds):
                    write(process)
                    stats = Stats()
                    taken = torpor.checkpoint(process.pid, store=place, series=series, stats=stats)
                    plain = machine.write_seconds(Path(place), max(taken.written, MIB))
                    one = {"again": stats.total_ns / 1e9, "again_pause": stats.pause_ns / 1e9, "plain": plain}
                    figures.append(one | {"again_written": float(taken.written)})
        finally:
            end(process)
        found[f"{share:.1%}"] = {name: min(one[name] for one in figures) for name in figures[0]}
    return found


def criu(target: Target, folder: Path) -> dict[str, float] | None:
    """The same with CRIU, as root, where one is installed and works here."""
    if os.geteuid() or not shutil.which("criu"):
        return None
    with tempfile.TemporaryDirectory(dir=folder) as place:
        process = target.start()
        try:
            dump = ["criu", "dump", "-t", str(process.pid), "-D", place, "-o", "log", "--shell-job", "-R"]
            taken = time.perf_counter()
            done = subprocess.run(dump, capture_output=True, check=False)
            taken = time.perf_counter() - taken
        finally:
            end(process)
        if done.returncode:
            return None
        return {"published": taken, "written": float(sum(f.stat().st_size for f in Path(place).iterdir()))}


def main() -> None:
    """Run the bench and print it."""
    options = argparse.ArgumentParser(prog="make bench", description=__doc__)
    options.add_argument("--rounds", type=int, default=3, help="rounds of each target; the median counts")
    options.add_argument("--only", help="a part of the names of the targets to run")
    options.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where images are written")
    options.add_argument("--shares", action="store_true", help="only saves in a series, by the share that was written")
    options.add_argument("--json", action="store_true", help="print figures for programs")
    chosen = options.parse_args()
    if chosen.shares:
        print(json.dumps(by_share(chosen.folder, chosen.rounds), indent=1))
        return
    results = {}
    for target in TARGETS:
        if chosen.only and chosen.only not in target.name:
            continue
        figures = measure(target, chosen.folder, chosen.rounds)
        if other := criu(target, chosen.folder):
            figures |= {f"criu_{name}": value for name, value in other.items()}
        results[target.name] = figures
        print(f"{target.name}: done", file=sys.stderr)
    size = 1 << 30
    held = machine.filled(size)
    bare = {
        "copy": size / machine.copy_seconds(size),
        "write": size / machine.write_seconds(chosen.folder, size),
        "populate": size / machine.populate_seconds(size),
        "fork_1gib": machine.fork_seconds(held),
        "load": os.getloadavg()[0],
    }
    if chosen.json:
        print(json.dumps({"targets": results, "machine": bare}))
    else:
        _show(results, bare)


def slowest(one: dict[str, float], prefix: str) -> str:
    """The two slowest stages."""
    stages = {name.removeprefix(prefix): value for name, value in one.items() if name.startswith(prefix)}
    order = sorted(stages, key=stages.__getitem__, reverse=True)[:2]
    return ", ".join(f"{name} {stages[name] * 1e3:.0f}" for name in order)


def _show(results: dict[str, dict[str, float]], bare: dict[str, float]) -> None:
    console = Console(width=200)
    table = Table(title="torpor, and in brackets what the machine alone takes for the same")
    headings = (
        "",
        "pause",
        "published",
        "processor",
        "image",
        "its slowest stages, ms",
        "the next in a series",
        "its pause",
        "it writes",
        "restored",
        "processor",
        "its slowest stages, ms",
        "its memory",
        "criu dump",
    )
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    for name, one in results.items():
        size = one["written"] if "populate" in one else 0
        fork = f" ({size / (1 << 30) * bare['fork_1gib'] * 1e3:.0f})" if size else ""
        table.add_row(
            name,
            f"{one['pause'] * 1e3:.0f}{fork} ms",
            f"{one['published']:.2f}" + (f" ({one['plain']:.2f})" if size else "") + " s",
            f"{one['published_cpu']:.2f} s",
            f"{one['written'] / MIB:.1f} MiB",
            slowest(one, "stage_"),
            f"{one['again']:.2f} s",
            f"{one['again_pause'] * 1e3:.0f} ms",
            f"{one['again_written'] / MIB:.1f} MiB",
            f"{one['restored']:.2f}" + (f" ({one['populate']:.2f})" if size else "") + " s",
            f"{one['restored_cpu']:.2f} s",
            slowest(one, "restore_"),
            f"{one['restored_memory'] / MIB:.0f} MiB",
            f"{one['criu_published']:.2f} s" if "criu_published" in one else "-",
        )
    console.print(table)
    machine_table = Table(title="this machine")
    for heading in ("memcpy", "write + fsync", "populate", "fork of 1 GiB", "load"):
        machine_table.add_column(heading, justify="right")
    machine_table.add_row(
        *(f"{bare[name] / 1e9:.2f} GB/s" for name in ("copy", "write", "populate")),
        f"{bare['fork_1gib'] * 1e3:.1f} ms",
        f"{bare['load']:.1f}",
    )
    console.print(machine_table)


if __name__ == "__main__":
    main()
