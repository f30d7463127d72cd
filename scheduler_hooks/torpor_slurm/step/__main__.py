"""srun, below a supervisor: see the package."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from torpor.errors import TorporError
from torpor_slurm.step import place, room
from torpor_slurm.step.files import several_programs
from torpor_slurm.step.options import Step, read
from torpor_slurm.step.tasks import Binding, Files, Task, binding, environment, say
from torpor_slurm.step.tender import Stream, Tender


def main(arguments: Sequence[str]) -> int:
    """Run a step; `arguments` are srun's. Its exit code, if it does not take this process's place.

    Raises:
        Refused: the step cannot be a part of the job's process tree.
        NoRoom, ValueError: srun would refuse it, too, with these words.
    """
    job = {**os.environ, **place.current(os.environ)}
    step = read(arguments, job)
    if not step.command:
        sys.exit("srun: fatal: No command given to execute.")
    os.chdir(step.values.get("chdir", "."))
    commands = {task: list(step.command) for task in range(step.tasks)}
    if step.has("multi-prog"):
        programs = several_programs(step.command[0], step.tasks)
        commands = {task: [*words, *step.command[1:]] for task, words in programs.items()}
    with room.taken(step, job) as cpus:
        job.update(place.current(job))  # it may have waited for long, and have been woken elsewhere meanwhile
        number = place.next_step(job)
        bound = binding(step, cpus, room.size(job), sorted(os.sched_getaffinity(0)))
        variables = environment(step, number, len(cpus), job)
        files = Files(step, number, job)
        if step.tasks == 1 and not step.has("label"):
            stdio = [files.input(0) or 0, files.output(0, 1)[0], files.output(0, 2)[0]]
            Task(0, commands[0], stdio).become(variables, bound)
        tender = Tender(step, f"{job.get('SLURM_JOB_ID', '0')}.{number}")
        living, streams, inputs = _start(step, commands, files, variables, bound)
    return tender.tend(living, streams, inputs)


def _start(
    step: Step, commands: dict[int, list[str]], files: Files, variables: dict[str, str], bound: Binding
) -> tuple[dict[int, int], list[Stream], list[int]]:
    """Start the tasks: their numbers by PID, the output that is merged, and where the input goes."""
    streams: list[Stream] = []
    inputs: list[int] = []
    living: dict[int, int] = {}
    for number in range(step.tasks):
        task = Task(number, commands[number], [])
        given = files.input(number)
        if given is None:
            given, ours = os.pipe2(os.O_CLOEXEC)
            inputs.append(ours)
            task.pipes.append(given)
        task.stdio.append(given)
        label = f"{number:>{len(str(step.tasks - 1))}}: ".encode() if step.has("label") else b""
        for which in (1, 2):
            fd, shared = files.output(number, which)
            if label or (shared and not step.has("unbuffered")):
                ours, theirs = os.pipe2(os.O_CLOEXEC)
                streams.append(Stream(ours, fd, label))
                task.pipes.append(theirs)
                fd = theirs
            task.stdio.append(fd)
        living[task.start(variables, bound)] = number
    files.close({stream.destination for stream in streams})
    return living, streams, inputs


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        sys.exit(main(sys.argv[1:]))
    except (room.NoRoom, ValueError) as error:
        say(f"error: {error}")
        sys.exit(1)
    except (TorporError, OSError) as error:
        sys.exit(f"srun, in a job under torpor: {error}")
