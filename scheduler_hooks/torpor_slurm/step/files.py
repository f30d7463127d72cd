"""The names of a step's files (srun(1), "filename pattern"), and the file that --multi-prog names."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Mapping
from pathlib import Path

_PATTERN = re.compile(r"%(\d*)(.?)", re.DOTALL)
_WORD = re.compile(r"(?:'[^']*'|\\.|[^\s'\\])+")
"""A word in a --multi-prog file."""
_KNOWN = frozenset("%AJNabjnstux")
"""The letters of srun's file name patterns."""


def unknown_patterns(name: str) -> list[str]:
    """The pattern letters in a file name that srun does not know."""
    found = [] if "\\" in name else _PATTERN.findall(name)
    return [letter for _, letter in found if letter not in _KNOWN or not letter]


def is_one_per_task(name: str) -> bool:
    """Whether each task has a file of its own."""
    return "\\" not in name and any(letter == "t" for _, letter in _PATTERN.findall(name))


def file_name(name: str, environment: Mapping[str, str], step: int, task: int) -> str:
    """Replace the patterns in a file name, for a task of a step that has one node.

    Args:
        name: the value of --input, --output or --error.
        environment: the variables of the job.
        step: the step's number.
        task: the task's.
    """
    if "\\" in name:  # wherever it stands, srun then removes the backslashes and replaces no pattern
        return name.replace("\\", "")
    job = environment.get("SLURM_JOB_ID", "0")
    array = environment.get("SLURM_ARRAY_TASK_ID", "4294967294")  # what Slurm writes where there is none: NO_VAL
    known = {
        **{"%": "%", "j": job, "A": environment.get("SLURM_ARRAY_JOB_ID", job), "a": array, "b": str(int(array) % 10)},
        **{"N": os.uname().nodename.partition(".")[0], "n": "0", "t": str(task), "s": str(step), "J": f"{job}.{step}"},
        "x": environment.get("SLURM_JOB_NAME", ""),
        "u": pwd.getpwuid(os.getuid()).pw_name if "u" in name else "",
    }

    def replaced(found: re.Match[str]) -> str:
        value = known[found[2]]
        return value.zfill(min(int(found[1] or 0), 10)) if value.isdecimal() else value

    return _PATTERN.sub(replaced, name)


def several_programs(path: str, tasks: int) -> dict[int, list[str]]:
    """Read a --multi-prog file: which command each task runs, by lines of ``TASKS PROGRAM ARGUMENTS...``.

    The file quotes by '...', or by a backslash before a character or the end of a line. %t is a task's number, and %o
    its offset within the range of its line (srun of Slurm 22.05).

    Raises:
        ValueError: a line cannot be read, or a task has no line; with srun's message.
        OSError: there is no such file.
    """
    found: dict[int, list[str]] = {}
    text = Path(path).read_text().replace("\\\n", "")
    for at, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        ranks, _, rest = line.strip().partition(" ")
        words = [re.sub(r"'([^']*)'|\\(.)", r"\1\2", word) for word in _WORD.findall(rest)]
        chosen = _ranks(ranks, tasks)
        twice = found.keys() & chosen if ranks != "*" else ()
        if not words or not chosen or max(chosen) >= tasks or twice:
            why = f"Duplicate record for task {min(twice)}\nsrun: error: " if twice else ""
            raise ValueError(f"{why}Line {at} of configuration file {path} invalid")
        for offset, task in enumerate(chosen):
            numbered = [word.replace("%t", str(task)).replace("%o", str(offset)) for word in words]
            found.setdefault(task, numbered)
    if missing := [task for task in range(tasks) if task not in found]:
        raise ValueError(f"Configuration file {path} invalid, no record for task id {missing[0]}")
    return found


def _ranks(text: str, tasks: int) -> list[int]:
    if text == "*":
        return list(range(tasks))
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        return []
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found
