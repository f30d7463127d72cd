"""A Dask cluster of real processes, and workloads for it."""

from __future__ import annotations

import multiprocessing.resource_tracker
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import dask.array as da
from dask.typing import Key
from distributed import Client, LocalCluster

from tests.integration.dask_tasks import add, chunk_of, counters, kept_keys, leaf, slow, suspicions
from tests.integration.dask_times import SWEEP, TAIL
from torpor.store import Store
from torpor_dask.results import KIND, Kept, look

ROOT = Path(__file__).parents[2]
PATIENCE = 100.0  # seconds until a test says that something does not happen


def shuffled(log: str) -> Any:
    """A dataframe that goes through a P2P shuffle, with a task before and one after for each partition."""
    frame = dask.datasets.timeseries(start="2000-01-01", end="2000-01-13", freq="1min", partition_freq="1D", seed=42)
    frame = frame.map_partitions(chunk_of, log, meta=frame._meta)
    return frame.shuffle("name").map_partitions(chunk_of, log, meta=frame._meta).groupby("name").x.sum()


def workload(name: str, method: str, log: str) -> Any:
    """Give a lazy workload with tasks before and after a shuffle or a rechunk, done by tasks or by P2P."""
    with dask.config.set({"dataframe.shuffle.method": method, "array.rechunk.method": method}):
        if name == "dataframe":
            return shuffled(log)
        matrix = da.random.default_rng(42).random((1200, 1200), chunks=(200, 200)).map_blocks(slow, log, dtype="f8")
        other = matrix.rechunk((1200, 100)).map_blocks(slow, log, dtype="f8")
        return (other @ other.T).sum(axis=0)


def runs(log: Path) -> Counter[Key]:
    """How often the body of each task ran to its end, by key."""
    return Counter(log.read_text().splitlines()) if log.exists() else Counter()


def until(what: str, condition: Callable[[], Any]) -> Any:
    """Wait for something to happen and give it; the words are for the failure."""
    deadline = time.monotonic() + PATIENCE
    while not (result := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen within {PATIENCE:.0f} s"
        time.sleep(0.05)
    return result


@contextmanager
def local_cluster(**options: Any) -> Iterator[Client]:
    """A LocalCluster within this process, and a client of it; nothing of it stays behind."""
    try:
        with LocalCluster(dashboard_address="127.0.0.1:0", **options) as local, Client(local) as client:
            yield client
    finally:
        tracker: Any = multiprocessing.resource_tracker
        tracker._resource_tracker._stop()  # Dask spawns workers through multiprocessing, which would keep it running


class Cluster:
    """Scheduler and workers, each a process of its own, started by Dask's own command line."""

    def __init__(self, tmp: Path, config: dict[str, Any], host: str = "127.0.0.1") -> None:
        self.tmp = tmp
        self.host = host
        self.log = tmp / "log"
        self.store = Store(tmp / "store")
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]),
            "DASK_TORPOR__STORE": self.store.path,
            "DASK_TORPOR__MIN_DURATION": "10ms",
            "DASK_DISTRIBUTED__SCHEDULER__PRELOAD": '["torpor_dask", "tests.integration.dask_times"]',
            TAIL: str(PATIENCE),  # what a lost worker stored last is looked for, however long that takes
            SWEEP: "600",  # what was stored is there to be looked at, needed or not
            "DASK_DISTRIBUTED__SCHEDULER__VALIDATE": "True",  # Dask checks its invariants after each transition
            "DASK_DISTRIBUTED__WORKER__VALIDATE": "True",
            "DASK_DISTRIBUTED__WORKER__MEMORY__TERMINATE": "False",
            # How long a worker goes on dialling one that was killed: 30 s by default, for each attempt of a shuffle
            "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "10s",
            "DASK_TEMPORARY_DIRECTORY": str(tmp / "scratch"),
            **{f"DASK_{name.upper().replace('.', '__')}": str(value) for name, value in config.items()},
        }
        self.number = 0

    def start_scheduler(self, options: tuple[str, ...] = ()) -> None:
        self.number += 1
        self.file = self.tmp / f"scheduler-{self.number}.json"
        where = ("--host", self.host, "--port", "0", "--dashboard-address", "127.0.0.1:0")
        self.scheduler = self._popen("scheduler", *where, "--scheduler-file", self.file, *options)
        until("the scheduler's file", lambda: self.file.exists() and self.file.stat().st_size)
        self.client = Client(scheduler_file=str(self.file))

    def start_worker(
        self, name: str, *options: str, threads: int = 2, host: str = "", within: tuple[str, ...] = ()
    ) -> subprocess.Popen[bytes]:
        """Start a worker, on another host, say, which a command leads `within`."""
        options = options or ("--no-nanny",)
        self.workers[name] = self._popen(
            "worker", "--scheduler-file", self.file, "--name", name, "--nthreads", str(threads),
            "--memory-limit", "0", "--no-dashboard", "--host", host or self.host, *options, within=within,
        )  # fmt: skip
        return self.workers[name]

    def start(self, count: int = 2, threads: int = 2, *options: str) -> Cluster:
        self.start_scheduler()
        for number in range(count):
            self.start_worker(f"w{self.number}{number}", *options, threads=threads)
        self.client.wait_for_workers(count, PATIENCE)
        return self

    def _popen(self, *args: object, within: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        with open(self.tmp / "output", "ab") as output:
            return subprocess.Popen(
                [*within, sys.executable, "-m", "dask", *map(str, args)], env=self.env, stdout=output, stderr=output
            )

    def pid(self, name: str) -> int:
        """The PID of a worker proper, whoever its nanny is."""
        pids = self.client.run(os.getpid)
        names = {worker["name"]: address for address, worker in self.info().items()}
        return int(pids[names[name]])

    def info(self) -> dict[str, Any]:
        return dict(self.client.scheduler_info(n_workers=-1)["workers"])

    def kill(self, *names: str) -> None:
        for name in names:
            self.workers[name].kill()
        for name in names:
            self.workers.pop(name).wait()

    def stop(self, *, hard: bool = False) -> None:
        """End all of it; hard: as a power cut does, and then the client is told nothing either."""
        if hard:
            for process in [*self.workers.values(), self.scheduler]:
                process.kill()
        else:
            self.client.close()
        for processes in (self.workers.values(), [self.scheduler]):
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(PATIENCE)
        self.workers.clear()
        if hard:
            self.client.close(timeout=PATIENCE)

    def counters(self) -> dict[str, Any]:
        return dict(self.client.run_on_scheduler(counters))

    def loaded(self) -> int:
        return int(self.counters()["loaded"])

    def suspicions(self) -> int:
        """How often any task is held to have taken a worker with it."""
        return int(self.client.run_on_scheduler(suspicions))

    def kept(self) -> list[Kept]:
        """All that is in the store."""
        infos = [info for info in self.store.snapshots() if info.kind == KIND]
        return [kept for info in infos for kept in look(self.store, info)]

    def until_kept(self, *keys: object) -> None:
        """Wait until the scheduler knows that results are stored."""
        until("storing", lambda: set(keys) <= self.client.run_on_scheduler(kept_keys))

    def output(self) -> str:
        return (self.tmp / "output").read_text(errors="replace")


BAD_NEWS = ("Plugin failed with exception", "AssertionError", "Error transitioning", "InvalidTransition", "odd message")
"""What must not be in the output of any process: Dask found its state broken, or our hook raised."""


@contextmanager
def cluster(tmp: Path, *, host: str = "127.0.0.1", **config: Any) -> Iterator[Cluster]:
    made = Cluster(tmp, {name.replace("__", "."): value for name, value in config.items()}, host)
    try:
        yield made
    except BaseException:
        if (tmp / "output").exists():
            print(made.output()[-20000:])
        raise
    finally:
        for process in [*made.workers.values(), getattr(made, "scheduler", None)]:
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
        if hasattr(made, "client"):
            made.client.close(timeout=PATIENCE)
    for line in made.output().splitlines():
        assert not any(news in line for news in BAD_NEWS), line


def tree(client: Client, log: Path, leaves: int = 75, seconds: float = 0.05) -> Any:
    """Submit `leaves` leaves and their pairwise sums down to one: 2 * leaves - 1 tasks. Inner results are let go."""
    layer = [client.submit(leaf, number, str(log), seconds) for number in range(leaves)]
    while len(layer) > 1:
        pairs = zip(layer[::2], layer[1::2], strict=False)
        layer = [client.submit(add, a, b, str(log), seconds) for a, b in pairs] + layer[len(layer) // 2 * 2 :]
    return layer[0]


def lazy_tree(log: Path, leaves: int = 75, seconds: float = 0.05) -> Any:
    """The same as a graph, whose keys are the same in every session: those of tasks given futures are not."""
    layer = [dask.delayed(leaf, pure=True)(number, str(log), seconds) for number in range(leaves)]
    while len(layer) > 1:
        pairs = zip(layer[::2], layer[1::2], strict=False)
        layer = [dask.delayed(add, pure=True)(a, b, str(log), seconds) for a, b in pairs] + layer[len(layer) // 2 * 2 :]
    return layer[0]
