"""Options of a command that is not ours: which words are its own, and where the program's begin."""

from __future__ import annotations

import pytest

from torpor_slurm.options import Grammar

GRAMMAR = Grammar(
    without_value=frozenset({"hold", "exclusive"}),
    short_without_value=frozenset("HQ"),
    long={"N": "nodes", "J": "job-name"},
    in_full={"no": "nodes"},
)


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("--nodes=2 job.sh", {"nodes": "2"}),
        ("--nodes 2 job.sh", {"nodes": "2"}),
        ("--no 2 job.sh", {"nodes": "2"}),
        ("-N2 job.sh", {"nodes": "2"}),
        ("-N 2 job.sh", {"nodes": "2"}),
        ("-HQN2 job.sh", {"H": "", "Q": "", "nodes": "2"}),
        ("-HQ job.sh", {"H": "", "Q": ""}),
        ("-HQ1 job.sh", {"H": "", "Q": "1"}),
        ("--exclusive job.sh", {"exclusive": ""}),
        ("--exclusive=user job.sh", {"exclusive": "user"}),
        ("--nodes=1 -N2 job.sh", {"nodes": "2"}),
        ("-- job.sh", {"--": ""}),
        ("job.sh", {}),
    ],
)
def test_options_end_where_the_script_begins(line: str, options: dict[str, str]) -> None:
    found, rest = GRAMMAR.read([*line.split(), "--nodes=9", "-N9"])
    assert found == options
    assert rest == ["job.sh", "--nodes=9", "-N9"]


@pytest.mark.parametrize("line", ["--nodes", "-N", "-HN"])
def test_a_value_that_is_missing(line: str) -> None:
    """The command itself will complain."""
    assert GRAMMAR.read([line])[0]["nodes"] == ""


def test_a_value_that_looks_like_an_option() -> None:
    assert GRAMMAR.read(["--job-name", "--hold", "-N2", "-"]) == ({"job-name": "--hold", "nodes": "2"}, ["-"])


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("--hold --nodes 2 -Jname job.sh --nodes 3", "--hold -Jname job.sh --nodes 3"),
        ("-N 2 -N3 job.sh", "job.sh"),
        ("--nodes=2 -- --nodes=3", "-- --nodes=3"),
    ],
)
def test_an_option_is_taken_out_with_its_value(line: str, left: str) -> None:
    assert GRAMMAR.without(line.split(), "nodes") == left.split()
