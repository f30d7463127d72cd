"""Files of /proc that are held open: of the tree's own processes, whose PIDs come back, and of nobody else."""

from __future__ import annotations

import os
from pathlib import Path

from tests.unit.objects.fds.descriptor_tree import Acting, dumped, holder, opened


def test_files_of_no_process_are_opened_where_they_were(acting: Acting) -> None:
    def body(_: Path) -> None:
        code = "a = os.open('/proc/meminfo', os.O_RDONLY); os.read(a, 10); ready(a=a)\nwait()\n"
        fds, image = dumped(code)
        with opened(image) as woken:
            assert os.readlink(f"/proc/self/fd/{woken(fds['a'])}") == "/proc/meminfo"
            assert os.lseek(woken(fds["a"]), 0, os.SEEK_CUR) == 10

    acting(body)


def test_a_file_of_the_process_itself_names_it_by_its_pid() -> None:
    fds, image = dumped("a = os.open('/proc/self/status', os.O_RDONLY); ready(a=a, me=os.getpid())\nwait()\n")
    entry = next(one for one in image.processes[0].fds if one.fd == fds["a"])
    description = image.descriptions[entry.description]
    assert description.WhichOneof("kind") == "proc"
    assert description.proc.path == f"/proc/{fds['me']}/status".encode()


def test_a_file_of_a_process_outside_is_refused() -> None:
    with holder("a = os.open(f'/proc/{os.getppid()}/status', os.O_RDONLY); ready(a=a)\nwait()\n") as tree:
        tree.ready()
        (reason,) = tree.survey()
        assert "not in the tree" in reason.why
