"""`torpor doctor --slurm` judges a site's settings and measures a store."""

from __future__ import annotations

from pathlib import Path

from torpor_slurm import site


def test_a_site_is_judged_in_words() -> None:
    config = {"ProctrackType": "proctrack/linuxproc", "PreemptMode": "REQUEUE", "KillWait": "30", "JobRequeue": "0"}
    partitions = {"low": {"GraceTime": "120", "PreemptMode": "REQUEUE"}, "top": {"PreemptMode": "OFF"}}
    found = {one.title: one for one in site.examine(config, partitions, True, 100 * 2**20)}
    assert found["ProctrackType"].verdict == "limited"
    assert found["JobRequeue"].verdict == "limited"
    assert "jobs of up to 7.3 GiB of memory" in found["partition low"].means
    suspending = site.examine({**config, "PreemptMode": "GANG,SUSPEND"}, {}, True, 1.0)
    assert [one.verdict for one in suspending if one.name == "preempt_mode"] == ["no"]


def test_a_store_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    assert site.measure(str(tmp_path / "store"), 16 << 20) > 0
    assert list((tmp_path / "store").iterdir()) == []
