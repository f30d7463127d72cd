"""Freeze, publish, kill and restore each target; print times and their ratios to the machine's own."""

from __future__ import annotations

import argparse
import json
import os
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
from torpor.image import image_pb2 as pb
from torpor.store import Store

from . import machine
from .targets import TARGETS, Target, end

MIB = 1 << 20


def measure(target: Target, folder: Path, rounds: int) -> dict[str, float]:
    """The median of each figure over some rounds, in seconds and bytes."""
    found: list[dict[str, float]] = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            found.append(_round(target, Path(place)))
    return {name: statistics.median(one[name] for one in found) for name in found[0]}


def _round(target: Target, place: Path) -> dict[str, float]:
    store = Store(place / "store")
    process = target.start()
    try:
        begin = time.perf_counter()
        snapshot = torpor.checkpoint(process.pid, store=store)
        published = time.perf_counter() - begin
        with store.open(snapshot) as reader:
            timing = pb.Tree.FromString(reader.body).timing
        plain = machine.write_seconds(place, max(snapshot.written, MIB))
        with torpor.Series() as series:
            torpor.checkpoint(process.pid, store=store, series=series)
            begin = time.perf_counter()
            torpor.checkpoint(process.pid, store=store, series=series)
            again = time.perf_counter() - begin
        last = torpor.checkpoint(process.pid, store=Store(place / "second"), then="kill")
    finally:
        end(process)
    begin = time.perf_counter()
    null = os.open(os.devnull, os.O_RDWR)
    job = torpor.restore(last, store=Store(place / "second"), stdio=(null, null, null))
    restored = time.perf_counter() - begin
    os.close(null)
    job.send_signal(signal.SIGKILL)
    job.wait()
    return {
        "pause": timing.pause_ns / 1e9,
        "published": published,
        "plain": plain,
        "again": again,
        "written": float(snapshot.written),
        "restored": restored,
    }


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
    options.add_argument("--json", action="store_true", help="print figures for programs")
    chosen = options.parse_args()
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
    }
    if chosen.json:
        print(json.dumps({"targets": results, "machine": bare}))
    else:
        _show(results, bare)


def _show(results: dict[str, dict[str, float]], bare: dict[str, float]) -> None:
    console = Console(width=120)
    table = Table(title="torpor")
    headings = (
        "",
        "pause",
        "published",
        "image",
        "of plain write",
        "in a series",
        "restored",
        "restore speed",
        "criu dump",
    )
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    for target in TARGETS:
        if target.name not in results:
            continue
        one = results[target.name]
        speed = f"{target.size / one['restored'] / 1e9:.2f} GB/s" if target.size else ""
        table.add_row(
            target.name,
            f"{one['pause'] * 1e3:.1f} ms",
            f"{one['published']:.2f} s",
            f"{one['written'] / MIB:.1f} MiB",
            f"{one['plain'] / one['published']:.2f}" if target.size else "",
            f"{one['again']:.2f} s",
            f"{one['restored'] * 1e3:.0f} ms",
            speed,
            f"{one['criu_published']:.2f} s" if "criu_published" in one else "-",
        )
    console.print(table)
    machine_table = Table(title="this machine")
    for heading in ("memcpy", "write + fsync", "populate", "fork of 1 GiB"):
        machine_table.add_column(heading, justify="right")
    machine_table.add_row(
        *(f"{bare[name] / 1e9:.2f} GB/s" for name in ("copy", "write", "populate")), f"{bare['fork_1gib'] * 1e3:.1f} ms"
    )
    console.print(machine_table)


if __name__ == "__main__":
    main()
