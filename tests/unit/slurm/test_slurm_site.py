"""`torpor doctor --slurm` judges a site's settings and measures a store."""

from __future__ import annotations

from pathlib import Path

import pytest

from torpor.errors import NotFound
from torpor_slurm import site
from torpor_slurm.controller import SlurmError
from torpor_slurm.job_directory import JobDirectory


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


def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, each: str) -> None:
    """An srun that runs its command once for each node: `each` says what is different there."""
    srun = tmp_path / "bin/srun"
    srun.parent.mkdir()
    words = 'while [ "$1" != sh ]; do shift; done; shift; shift; trial=$1; folder=$3; token=$4\n'
    loop = (
        f'for SLURMD_NODENAME in n1 n2; do\nexport SLURMD_NODENAME\n{each}\nsh -c "$trial" sh "$folder" "$token"\ndone'
    )
    srun.write_text(f"#!/bin/sh\n{words}{loop}\n")
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", str(srun.parent), prepend=":")


@pytest.mark.parametrize(
    ("each", "verdict", "words"),
    [
        ("", "ok", "n1, n2 see it, as this host does"),
        ("[ $SLURMD_NODENAME = n1 ] || folder=/nonesuch", "no", "n2 does not see it: a job that is woken there"),
        ("[ $SLURMD_NODENAME = n1 ] || token=other", "no", "n2 cannot read it"),
        ('[ $SLURMD_NODENAME = n1 ] || mkdir "$folder/n2"', "no", "n2 cannot write to it"),
        ("[ $SLURMD_NODENAME = n1 ] || trial='echo n2 sees it'", "no", "n2 writes to it, which is not seen here"),
    ],
)
def test_a_store_is_tried_from_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, each: str, verdict: str, words: str
) -> None:
    nodes(tmp_path, monkeypatch, each)
    monkeypatch.setattr(site, "ATTRIBUTES_LAST", 0.0)
    found = site.try_from_nodes(str(tmp_path / "store"), 2)
    assert (found.verdict, found.means.startswith(words)) == (verdict, True), found.means
    assert list((tmp_path / "store").iterdir()) == []


def test_nodes_that_slurm_does_not_give_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(tmp_path, monkeypatch, "echo 'Unable to allocate resources' >&2; exit 1")
    with pytest.raises(SlurmError, match="Unable to allocate resources"):
        site.try_from_nodes(str(tmp_path / "store"), 2)
    monkeypatch.setenv("PATH", "/nonesuch")
    with pytest.raises(NotFound, match="there is no srun here"):
        site.try_from_nodes(str(tmp_path / "store"), 2)


def test_the_nodes_of_a_store_are_named(tmp_path: Path) -> None:
    assert site.used_on(str(tmp_path)) == []
    for run, node in enumerate(("n2", "n1")):
        JobDirectory(tmp_path, "12", "c").arrive(run, node, 1.0)
    (found,) = site.used_on(str(tmp_path))
    assert found.means == "jobs have used it on n1, n2"
