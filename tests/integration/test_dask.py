"""Dask with Torpor, on scheduler and workers as separate processes: what a loss costs, counted by the tasks."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from dask.typing import Key
from distributed import wait

from tests.integration.dask_cluster import PATIENCE, Cluster, cluster, lazy_tree, runs, tree, until
from tests.integration.dask_tasks import Tally, add, array, leaf, patient, seconds, states, total, with_a_future
from tests.integration.dask_times import SWEEP
from tests.users import BIN

pytestmark = pytest.mark.timeout(180)


def stored(dask: Cluster) -> set[str]:
    """Keys of all that is in the store, as tasks log them."""
    return {str(kept.key) for kept in dask.kept()}


def again(dask: Cluster) -> set[Key]:
    """Keys of the tasks whose body ran more than once."""
    return {key for key, count in runs(dask.log).items() if count > 1}


def rerun(dask: Cluster, before: set[str], lines: int) -> set[str]:
    """Keys that were stored `before`, and ran after the log had so many lines."""
    return before & set(dask.log.read_text().splitlines()[lines:])


# losses


def until_stored(dask: Cluster, count: int) -> None:
    """Wait until so many results were stored and the scheduler knows it."""
    until("storing", lambda: dask.counters()["kept"] >= count)


@pytest.mark.parametrize("nanny", [False, True], ids=["plain", "nanny"])
def test_after_sigkill_no_stored_task_of_149_runs_again(tmp_path: Path, nanny: bool) -> None:
    with cluster(tmp_path) as dask:
        dask.start(2, 2, "--nanny" if nanny else "--no-nanny")
        result = tree(dask.client, dask.log)
        until_stored(dask, 50)
        os.kill(dask.pid("w10"), signal.SIGKILL)
        before = stored(dask)
        assert result.result(PATIENCE) == sum(range(75))
        assert len(before) >= 50
        assert not again(dask) & before
        # Whether the worker held one that was still needed, and is then loaded, is chance. One that was needed no more
        # before it was loaded would be loaded as long as its result may be asked for.
        result.release()
        until("forgetting", lambda: not dask.client.run_on_scheduler(states))
        assert dask.counters()["origins"] == dask.counters()["loading"] == 0
        dask.stop()


def test_write_through_leaves_no_window(tmp_path: Path) -> None:
    with cluster(tmp_path, torpor__write_through=True) as dask:
        dask.start()
        go = tmp_path / "go"
        leaves = [dask.client.submit(leaf, number, str(dask.log)) for number in range(30)]
        wait(leaves, PATIENCE)
        assert stored(dask) == {future.key for future in leaves}
        tasks = [dask.client.submit(patient, str(dask.log), str(go), future) for future in leaves]
        until("a task", lambda: runs(dask.log).total() > 30)
        dask.kill(richest(dask))
        go.touch()
        assert dask.client.gather(tasks) == [42 + number for number in range(30)]
        assert not again(dask) & {future.key for future in leaves}
        assert dask.loaded() > 0
        dask.stop()


def richest(dask: Cluster) -> str:
    """The worker with most results."""
    results = dask.client.has_what()
    return str(dask.info()[max(results, key=lambda address: len(results[address]))]["name"])


def test_three_losses_in_a_row(tmp_path: Path) -> None:
    with cluster(tmp_path) as dask:
        dask.start(2)
        result = tree(dask.client, dask.log)
        losses = []
        for number in range(3):
            until_stored(dask, 30 * (number + 1))
            dask.start_worker(f"spare{number}")
            dask.kill(next(iter(dask.workers)))
            losses.append((stored(dask), runs(dask.log).total()))
        assert result.result(PATIENCE) == sum(range(75))
        for loss in losses:
            assert not rerun(dask, *loss)
        dask.stop()


def test_all_workers_at_once(tmp_path: Path) -> None:
    with cluster(tmp_path) as dask:
        dask.start()
        result = tree(dask.client, dask.log)
        until_stored(dask, 50)
        dask.kill("w10", "w11")
        before = stored(dask)
        dask.start_worker("new")
        assert result.result(PATIENCE) == sum(range(75))
        assert not again(dask) & before
        dask.stop()


def test_scheduler_and_workers_lost_and_the_same_graph_again(tmp_path: Path) -> None:
    with cluster(tmp_path) as dask:
        graph = lazy_tree(dask.log)
        dask.start()
        result = dask.client.compute(graph)
        until_stored(dask, 50)
        dask.stop(hard=True)
        assert result.cancelled()
        before, lines = stored(dask), runs(dask.log).total()
        assert len(before) >= 50
        dask.start()
        result = dask.client.compute(graph)
        assert result.result(PATIENCE) == sum(range(75))
        assert not rerun(dask, before, lines)
        assert len(runs(dask.log)) == 149
        # once more: what was loaded and what was computed since are both found
        dask.until_kept(result.key)
        dask.stop(hard=True)
        lines = runs(dask.log).total()
        dask.start()
        assert dask.client.compute(graph).result(PATIENCE) == sum(range(75))
        assert runs(dask.log).total() == lines
        dask.stop()


def test_a_function_that_changed_is_not_taken_for_the_earlier_one(tmp_path: Path) -> None:
    def make(factor: int) -> Any:
        def times(number: int) -> int:
            time.sleep(0.05)
            return number * factor

        return times

    key = "times-" + "0" * 32
    with cluster(tmp_path) as dask:
        dask.start(1)
        future = dask.client.submit(make(2), 21, key=key)
        assert future.result(PATIENCE) == 42
        dask.until_kept(key)
        dask.stop(hard=True)
        dask.start(1)
        assert dask.client.submit(make(3), 21, key=key).result(PATIENCE) == 63
        assert dask.loaded() == 0
        dask.stop()


def test_a_name_given_by_a_person_is_not_believed_by_another_cluster(tmp_path: Path) -> None:
    with cluster(tmp_path) as dask:
        dask.start(1)
        first = dask.client.submit(leaf, 1, str(dask.log), key="first")
        second = dask.client.submit(add, first, 1, str(dask.log), key="add-" + "0" * 32)
        assert second.result(PATIENCE) == 2
        dask.until_kept(first.key, second.key)
        dask.stop(hard=True)
        dask.start(1)
        first = dask.client.submit(leaf, 10, str(dask.log), key="first")
        assert dask.client.submit(add, first, 1, str(dask.log), key="add-" + "0" * 32).result(PATIENCE) == 11
        dask.stop()


def test_a_key_used_for_something_else_is_not_taken_from_the_store(tmp_path: Path) -> None:
    with cluster(tmp_path) as dask:
        dask.start(1)
        future = dask.client.submit(leaf, 1, str(dask.log), key="name")
        wait(future, PATIENCE)
        dask.until_kept("name")
        future.release()
        until("forgetting", lambda: not dask.client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)))
        with dask_annotate("never"):
            future = dask.client.submit(leaf, 2, str(dask.log), key="name")
        wait(future, PATIENCE)
        dask.start_worker("other")
        dask.kill("w10")
        assert future.result(PATIENCE) == 2
        dask.stop()


def dask_annotate(word: str) -> Any:
    return dask.annotate(torpor=word)


# what cannot be read or written


def test_what_cannot_be_read_is_computed(tmp_path: Path) -> None:
    def flip(pack: Path) -> None:
        with open(pack, "r+b") as file:
            file.seek(-3000, os.SEEK_END)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1]))

    with cluster(tmp_path, torpor__keep="all") as dask:  # not only what is faster to read than to compute, as it seems
        dask.start(1)
        arrays, snapshots = [], []
        for number in range(4):  # a snapshot for each
            arrays.append(dask.client.submit(array, number, 100_000, str(dask.log)))
            dask.until_kept(arrays[-1].key)
            snapshots += [kept.snapshot for kept in dask.kept() if kept.key == arrays[-1].key]
        expected = sum(float(np.random.default_rng(number).random(100_000).sum()) for number in range(4))
        root = Path(dask.store.path)
        flipped, cut, removed, _ = snapshots
        flip(root / f"packs/{flipped}.pack")
        os.truncate(root / f"packs/{cut}.pack", 8192)
        (root / f"snapshots/{removed}/manifest").unlink()
        dask.start_worker("other")
        dask.kill("w10")
        result = dask.client.submit(total, str(dask.log), *arrays)
        assert result.result(PATIENCE) == pytest.approx(expected)
        assert (dask.counters()["unreadable"], dask.loaded()) == (3, 1)
        dask.until_kept(result.key, *(future.key for future in arrays))  # nothing is being written any more
        shutil.rmtree(root)
        dask.start_worker("third")
        dask.kill("other")
        assert dask.client.submit(total, str(dask.log), *arrays, pure=False).result(PATIENCE) == pytest.approx(expected)
        assert dask.counters()["unreadable"] >= 3 + 4
        until("the end of loading", lambda: dask.counters()["origins"] == dask.counters()["loading"] == 0)
        dask.stop()


def test_an_unreadable_result_whose_inputs_were_let_go_is_computed_from_what_is_stored(tmp_path: Path) -> None:
    with cluster(tmp_path) as dask:
        dask.start(1)
        result = tree(dask.client, dask.log, leaves=4)
        wait(result, PATIENCE)
        dask.until_kept(result.key)
        until("storing", lambda: len(stored(dask)) == 7)
        (damaged,) = {kept.snapshot for kept in dask.kept() if kept.key == result.key}
        beside = [str(kept.key) for kept in dask.kept() if kept.snapshot == damaged]
        (Path(dask.store.path) / "snapshots" / damaged / "manifest").unlink()
        dask.start_worker("other")
        dask.kill("w10")
        assert result.result(PATIENCE) == 6
        assert again(dask) <= set(beside)
        dask.stop()


def test_a_full_store_stops_no_computation(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root, to mount a small file system")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", small], check=True)
    try:
        with cluster(tmp_path, torpor__store=small / "store") as dask:
            dask.store = type(dask.store)(small / "store")
            dask.start(1)
            size = 200_000  # numbers; 1.6 MB, so that not a single result fits
            arrays = [dask.client.submit(array, number, size, str(dask.log)) for number in range(10)]
            wait(arrays, PATIENCE)
            until("the failure", lambda: dask.counters()["failed"])
            assert "No space left" in dask.counters()["error"]
            dask.start_worker("other")
            dask.kill("w10")
            expected = sum(float(np.random.default_rng(number).random(size).sum()) for number in range(10))
            assert dask.client.submit(total, str(dask.log), *arrays).result(PATIENCE) == pytest.approx(expected)
            assert dask.store.verify() == []
            dask.stop()
    finally:
        subprocess.run(["umount", small], check=True)


# what is kept


def test_chosen_by_duration_and_by_annotation(tmp_path: Path) -> None:
    with cluster(tmp_path, torpor__min_duration="300ms") as dask:
        dask.start(1)
        client, log = dask.client, str(dask.log)
        long = client.submit(leaf, 1, log, 0.4)
        shorts = [client.submit(leaf, 2, log, 0.01 * number) for number in range(4)]
        with dask_annotate("always"):
            always = client.submit(leaf, 3, log, 0.01)
        with dask_annotate("never"):
            never = client.submit(leaf, 4, log, 0.4)
        wait([long, *shorts, always, never], PATIENCE)
        dask.until_kept(long.key, always.key)
        (took,) = client.run(seconds).values()  # a short one has taken long if its worker got no processor
        dask.stop()  # flushes
        assert took[long.key] >= 0.3 and took[never.key] >= 0.3
        assert stored(dask) == {long.key, always.key, *(short.key for short in shorts if took[short.key] >= 0.3)}


def test_what_nobody_needs_leaves_the_store(tmp_path: Path) -> None:
    with cluster(tmp_path) as dask:
        dask.env[SWEEP] = "0.1"
        dask.start(1)
        result = tree(dask.client, dask.log, leaves=8)
        wait(result, PATIENCE)
        dask.until_kept(result.key)
        result.release()
        until("removing", lambda: not dask.store.ids() and not list(Path(dask.store.path).glob("packs/*")))
        dask.stop()


def test_the_command_line_sees_what_is_kept(tmp_path: Path) -> None:
    with cluster(tmp_path) as dask:
        dask.start(1)
        futures = [dask.client.submit(array, number, 1000, str(dask.log)) for number in range(3)]
        wait(futures, PATIENCE)
        dask.until_kept(*(future.key for future in futures))
        (info, *_) = dask.store.snapshots()
        assert (info.kind, info.damage) == ("dask", "")
        assert "of array" in info.summary
        assert info.tags["worker"].startswith("tcp://")
        for command in (["ls"], ["verify", "--all"]):
            line: list[str | Path] = [BIN / "torpor", *command, "--store", dask.store.path]
            told = subprocess.run(line, check=False, capture_output=True, text=True)
            assert told.returncode == 0, told.stdout + told.stderr
            assert command != ["ls"] or "of array" in told.stdout
        report = dask.store.prune(0, kind="dask")
        assert report.snapshots
        assert dask.store.ids() == []
        dask.stop()


# what is left alone, or needs care


def test_scattered_data_outlives_its_worker(tmp_path: Path) -> None:
    with cluster(tmp_path) as dask:
        dask.start(1)
        data = dask.client.scatter(np.arange(100_000))
        dask.until_kept(data.key)
        names = ["w10", "second", "third"]
        for lost, new in itertools.pairwise(names):  # the second time it is what was loaded
            dask.start_worker(new)
            dask.client.wait_for_workers(2, PATIENCE)
            dask.kill(lost)
            assert dask.client.submit(np.sum, data, pure=False).result(PATIENCE) == 4999950000
        assert data.status == "finished"
        dask.stop()


def test_scattered_data_that_cannot_be_read_is_lost_as_ever(tmp_path: Path) -> None:
    with cluster(tmp_path) as dask:
        dask.start(1)
        data = dask.client.scatter(np.arange(100_000))
        dask.until_kept(data.key)
        shutil.rmtree(dask.store.path)
        dask.start_worker("other")
        dask.kill("w10")
        until("the loss", lambda: data.status in ("cancelled", "lost", "error"))
        dask.stop()


def test_actors_and_results_that_hold_futures_are_left_alone(tmp_path: Path) -> None:
    with cluster(tmp_path, torpor__keep="all") as dask:
        dask.start(1)
        client = dask.client
        actor_future = client.submit(Tally, actor=True)
        actor: Any = actor_future.result(PATIENCE)
        assert actor.increment().result() == 1
        holding = client.submit(with_a_future, 5, str(dask.log))
        beside = client.submit(leaf, 6, str(dask.log))
        wait([holding, beside], PATIENCE)
        dask.until_kept(beside.key)
        until("the refusal", lambda: dask.counters()["unkept"])
        assert not stored(dask) & {actor_future.key, holding.key}
        dask.start_worker("other")
        dask.kill("w10")
        assert beside.result(PATIENCE) == 6
        until("the actor's end", lambda: actor_future.status == "error")
        assert runs(dask.log)[beside.key] == 1
        dask.stop()


# leaving


@pytest.mark.parametrize("nanny", [False, True], ids=["plain", "nanny"])
def test_a_warned_worker_ends_its_task_stores_everything_and_leaves(tmp_path: Path, nanny: bool) -> None:
    with cluster(tmp_path, torpor__warning="SIGUSR1", torpor__gather="10s", torpor__drain="10 minutes") as dask:
        dask.start(1, 2, "--nanny" if nanny else "--no-nanny")
        done = [dask.client.submit(leaf, number, str(dask.log)) for number in range(6)]
        wait(done, PATIENCE)
        go = tmp_path / "go"
        running = dask.client.submit(patient, str(dask.log), str(go))
        until("running", lambda: runs(dask.log)[running.key])
        leaving = dask.workers["w10"]
        leaving.send_signal(signal.SIGUSR1)
        until("leaving", lambda: "closing_gracefully" in {worker["status"] for worker in dask.info().values()})
        go.touch()
        assert leaving.wait(PATIENCE) == 0
        del dask.workers["w10"]
        dask.start_worker("other")
        assert dask.client.gather([*done, running]) == [0, 1, 2, 3, 4, 5, 42]
        assert runs(dask.log)[running.key] == 2  # it began once and ended once
        assert again(dask) == {running.key}
        assert dask.suspicions() == 0
        dask.stop()


@pytest.mark.parametrize(("options", "warning"), [("--nanny", None), ("--no-nanny", "SIGTERM")])
def test_a_terminated_worker_stores_what_it_has_and_is_not_suspected(
    tmp_path: Path, options: str, warning: str | None
) -> None:
    settings = {"torpor__warning": warning} if warning else {}  # Dask's own end of a plain worker is no farewell
    with cluster(tmp_path, torpor__gather="10s", **settings) as dask:
        dask.start(1, 2, options)
        done = [dask.client.submit(leaf, number, str(dask.log)) for number in range(6)]
        wait(done, PATIENCE)
        dask.start_worker("other")
        dask.client.wait_for_workers(2, PATIENCE)
        leaving = dask.workers.pop("w10")
        leaving.terminate()
        leaving.wait(PATIENCE)
        assert dask.client.gather(done) == list(range(6))
        assert not again(dask)
        assert dask.suspicions() == 0
        dask.stop()


# together


def test_two_clusters_share_a_store(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    shared = tmp_path / "shared"
    with (
        cluster(tmp_path / "one", torpor__store=shared) as one,
        cluster(tmp_path / "two", torpor__store=shared) as two,
    ):
        for each in (one, two):
            each.store = type(each.store)(shared)
            each.start(2, 1)
        results = [tree(each.client, each.log, leaves=20) for each in (one, two)]
        for each in (one, two):
            until_stored(each, 10)
            each.kill("w10")
        assert results[0].result(PATIENCE) == sum(range(20))
        one.stop()
        assert results[1].result(PATIENCE) == sum(range(20))
        assert two.store.verify() == []
        two.stop()


def test_restart_and_resubmission_while_loading_end_well(tmp_path: Path) -> None:
    with cluster(tmp_path) as dask:
        dask.start(2, 1, "--nanny")
        result = tree(dask.client, dask.log, leaves=20)
        until_stored(dask, 10)
        os.kill(dask.pid("w10"), signal.SIGKILL)
        same = tree(dask.client, dask.log, leaves=20)
        assert same.result(PATIENCE) == result.result(PATIENCE) == sum(range(20))
        dask.client.restart(timeout=PATIENCE)
        assert tree(dask.client, dask.log, leaves=20).result(PATIENCE) == sum(range(20))
        dask.stop()
