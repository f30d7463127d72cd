"""What a job is called."""

from __future__ import annotations

import pytest

from torpor.util.job_names import job_name


@pytest.mark.parametrize(
    ("comm", "line", "name"),
    [
        ("sleep", "sleep 1000", "sleep"),
        ("solver", "./bin/solver --in mesh.h5", "solver"),
        ("a_solver_with_a_", "/opt/a_solver_with_a_long_name -x", "a_solver_with_a_"),
        ("a_solver_with_a", "/opt/a_solver_with_a_long_name -x", "a_solver_with_a_long_name"),
        ("python3", "/usr/bin/python3 -u -X dev train.py --lr 1", "python3 train.py"),
        ("python3.12", "python3.12 -Wd models/train.py", "python3.12 train.py"),
        ("python3", "python3 -m ipykernel_launcher -f k.json", "python3 -m ipykernel_launcher"),
        ("python3", "python3 -Bc secret=1", "python3 -c"),
        ("python3", "python3", "python3"),
        ("train.py", "/usr/bin/python3 ./train.py", "train.py"),
        ("sh", "sh -ec secret=1", "sh -c"),
        ("bash", "-bash", "bash"),
        ("bash", "bash -e -o pipefail jobs/job.sh", "bash job.sh"),
        ("perl", "perl -w -I lib run.pl", "perl run.pl"),
        ("R", "/usr/lib/R/bin/exec/R --no-echo --no-restore --file=sim/fit.R", "R fit.R"),
        ("java", "java -Xmx4g -cp a:b org.example.Main", "java org.example.Main"),
        ("java", "java -jar /opt/app.jar", "java -jar app.jar"),
        ("node", "node -r ts-node/register app.js", "node app.js"),
        ("postgres", "postgres:", "postgres"),
        ("train", "python3 train.py", "train"),
    ],
)
def test_names(comm: str, line: str, name: str) -> None:
    assert job_name(comm.encode(), line.encode().split(b" ")) == name


def test_names_of_what_has_no_command_line() -> None:
    assert job_name(b"python3", []) == "python3"
    assert job_name(b"", [b""]) == ""
    assert job_name(b"python3", [b"python3", b"-m"]) == "python3 -m"
