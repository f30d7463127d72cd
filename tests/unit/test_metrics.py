"""What Prometheus is told of checkpoints and restores."""

from __future__ import annotations

import fcntl
import os
import stat
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import torpor
from torpor import metrics
from torpor.errors import CheckpointFailed, NotFound, Reason, Refused, RestoreRefused

Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This user's file, which is not there yet; nothing is counted yet."""
    monkeypatch.setattr(metrics, "_here", {})
    monkeypatch.setenv("TORPOR_METRICS", str(tmp_path))
    return tmp_path / f"torpor-{os.geteuid()}.prom"


def read(file: Path) -> Values:
    """As Prometheus reads it."""
    found = text_string_to_metric_families(file.read_text())
    return {(one.name, frozenset(one.labels.items())): one.value for family in found for one in family.samples}


def of(values: Values, name: str, **labels: str) -> float:
    return values[name, frozenset(labels.items())]


def test_every_process_of_a_user_adds_to_one_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics.saved(0.5, 0.02, 4096, 1024)
    monkeypatch.setattr(metrics, "_here", {})  # as another process
    metrics.saved(20.0, 0.0, 4096, 0)
    metrics.failed("checkpoint", CheckpointFailed("busy"))
    values = read(file)
    assert of(values, "torpor_checkpoints_total", result="saved") == 2
    assert of(values, "torpor_checkpoints_total", result="CheckpointFailed") == 1
    assert of(values, "torpor_checkpoint_size_bytes_total") == 8192
    assert of(values, "torpor_checkpoint_written_bytes_total") == 1024
    assert of(values, "torpor_checkpoint_seconds_sum") == 20.5
    buckets = [
        of(values, "torpor_checkpoint_seconds_bucket", le=bound) for bound in ("0.1", "1.0", "10.0", "60.0", "+Inf")
    ]
    assert buckets == [0, 1, 1, 2, 2]
    assert of(values, "torpor_pause_seconds_count") == 1, "the second one was killed"
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    here = {family.name: family.samples for family in metrics.families()}
    assert ("torpor_checkpoints_total", (("result", "saved"),), 1.0) in here["torpor_checkpoints"]


def test_the_last_save_is_the_latest_of_all(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for now in (200.0, 100.0):
        monkeypatch.setattr(time, "time", partial(float, now))
        metrics.saved(1.0, 0.0, 1, 1)
    assert of(read(file), "torpor_last_checkpoint_timestamp_seconds") == 200


def test_refusals_are_counted_by_their_reasons(file: Path) -> None:
    reasons = [Reason("fd 7", 'it is "odd" \\ in line 1\n'), Reason("fd 8", "it is lost"), Reason("fd 9", "it is lost")]
    for _ in range(2):
        metrics.failed("checkpoint", Refused("nothing was saved", reasons))
    metrics.failed("restore", RestoreRefused("nothing was woken", reasons[1:]))
    values = read(file)
    assert of(values, "torpor_refusals_total", of="checkpoint", reason="it is lost") == 2
    assert of(values, "torpor_refusals_total", of="checkpoint", reason="it is '...' \\ in line N\n") == 2
    assert of(values, "torpor_refusals_total", of="restore", reason="it is lost") == 1
    assert of(values, "torpor_restores_total", result="RestoreRefused") == 1


@pytest.mark.parametrize(
    ("why", "shown"),
    [
        ("process 12 (secret), outside of the tree, has it", "process N, outside of the tree, has it"),
        ("there is no directory /home/ann/x.y to put it into", "there is no directory /... to put it into"),
        ("it belongs to 'ann', at 0x7f00", "it belongs to '...', at N"),
        ("it is kept on x86_64 only", "it is kept on x86_64 only"),
        ("a" * 200, "a" * 120),
    ],
)
def test_a_reason_tells_nothing_of_one_process(why: str, shown: str) -> None:
    assert metrics.in_general(why) == shown


def test_reasons_do_not_grow_without_end(file: Path) -> None:
    for number in range(70):
        name = "".join("abcdefghij"[int(digit)] for digit in str(number))
        metrics.failed("checkpoint", Refused("", [Reason("it", f"it is {name}")]))
    values = {labels: value for (name, labels), value in read(file).items() if name == "torpor_refusals_total"}
    assert len(values) == 65
    assert values[frozenset({("of", "checkpoint"), ("reason", "other")})] == 6


def test_no_save_fails_for_its_metrics(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORPOR_METRICS", str(file.parent / "not" / "there"))
    metrics.saved(1.0, 0.0, 1, 1)
    assert not file.exists()
    monkeypatch.setenv("TORPOR_METRICS", str(file.parent))
    monkeypatch.setattr(metrics, "_LOCK_SECONDS", 0.0)
    with open(f"{file}.lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        metrics.saved(1.0, 0.0, 1, 1)
    assert not file.exists()
    file.write_text("no metrics{ at all\ntorpor_restores_total x\n")
    metrics.saved(1.0, 0.0, 1, 1)
    assert of(read(file), "torpor_checkpoints_total", result="saved") == 1


def test_what_another_user_has_put_there_is_not_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = os.geteuid()
    theirs = file.parent / f"torpor-{own + 1}.prom"
    metrics.saved(1.0, 0.0, 1, 1)
    file.rename(theirs)
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    metrics.saved(1.0, 0.0, 1, 1)
    assert of(read(theirs), "torpor_checkpoints_total", result="saved") == 1


def test_processes_that_count_at_the_same_time(file: Path) -> None:
    threads = [threading.Thread(target=metrics.failed, args=("restore", NotFound("it"))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert of(read(file), "torpor_restores_total", result="NotFound") == 5


def test_what_is_called_is_counted(file: Path, tmp_path: Path) -> None:
    absent: Any = 2**22 + 1  # above every PID
    with pytest.raises(NotFound):
        torpor.checkpoint(absent, store=tmp_path / "store")
    with pytest.raises(NotFound):
        torpor.restore("latest", store=tmp_path / "store")
    values = read(file)
    assert of(values, "torpor_checkpoints_total", result="NotFound") == 1
    assert of(values, "torpor_restores_total", result="NotFound") == 1
