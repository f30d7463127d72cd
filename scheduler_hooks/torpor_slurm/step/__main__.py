"""The program that stands in for srun: see the package."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from torpor.errors import TorporError
from torpor_slurm.step import job_files, mpi, processors
from torpor_slurm.step.files import several_programs
from torpor_slurm.step.options import Step, read
from torpor_slurm.step.task_parent import Stream, TaskParent
from torpor_slurm.step.tasks import Files, Task, binding, environment, say


def main(arguments: Sequence[str]) -> int:
    """Run a step and return its exit code. A single task replaces this process: then nothing returns.

    Args:
        arguments: those of srun.

    Raises:
        Refused: the step cannot be a part of the job's process tree.
        NoProcessors, ValueError: srun would refuse it as well, with the same message.
    """
    job = {**os.environ, **job_files.current(os.environ)}
    step = read(arguments, job)
    if not step.command:
        sys.exit("srun: fatal: No command given to execute.")
    os.chdir(step.values.get("chdir", "."))
    commands = {task: list(step.command) for task in range(step.tasks)}
    if step.has("multi-prog"):
        programs = several_programs(step.command[0], step.tasks)
        commands = {task: [*words, *step.command[1:]] for task, words in programs.items()}
    launcher = mpi.launcher(step, [words[0] for words in commands.values()], job)
    with processors.reserved(step, job) as cpus:
        job.update(job_files.current(job))  # again: while the step waited, the job may have been woken on another node
        number = job_files.next_step(job)
        bound = binding(step, cpus, processors.count(job), sorted(os.sched_getaffinity(0)))
        variables = environment(step, number, len(cpus), job)
        files = Files(step, number, job)
        if step.tasks == 1 and not step.has("label") and launcher is None:
            stdio = [files.input(0) or 0, files.output(0, 1)[0], files.output(0, 2)[0]]
            Task(0, commands[0], stdio).become(variables, bound)
        parent = TaskParent(step, f"{job.get('SLURM_JOB_ID', '0')}.{number}")
        streams: list[Stream] = []
        tasks = [_with_outputs(step, Task(one, words, []), files, streams) for one, words in sorted(commands.items())]
        if launcher is not None:
            ranks = mpi.Ranks(launcher, tasks, variables, bound)
            return parent.run({ranks.start(cpus): range(step.tasks)}, streams, [], ranks.pipes)
        inputs = [fd for task in tasks for fd in _given_input(task, files)]
        living = {task.start(variables, bound): range(task.number, task.number + 1) for task in tasks}
        files.close({stream.destination for stream in streams})
    return parent.run(living, streams, inputs)


def _with_outputs(step: Step, task: Task, files: Files, streams: list[Stream]) -> Task:
    """Give a task its stdout and stderr: a pipe, if they are merged with those of other tasks or labelled."""
    label = f"{task.number:>{len(str(step.tasks - 1))}}: ".encode() if step.has("label") else b""
    for which in (1, 2):
        fd, shared = files.output(task.number, which)
        if label or (shared and not step.has("unbuffered")):
            ours, theirs = os.pipe2(os.O_CLOEXEC)
            streams.append(Stream(ours, fd, label))
            task.pipes.append(theirs)
            fd = theirs
        task.stdio.append(fd)
    return task


def _given_input(task: Task, files: Files) -> list[int]:
    """Give a task its stdin. Return the pipe's writing end if srun's own stdin must be copied to it."""
    if (given := files.input(task.number)) is not None:
        task.stdio.insert(0, given)
        return []
    given, ours = os.pipe2(os.O_CLOEXEC)
    task.stdio.insert(0, given)
    task.pipes.append(given)
    return [ours]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        sys.exit(main(sys.argv[1:]))
    except (processors.NoProcessors, ValueError) as error:
        say(f"error: {error}")
        sys.exit(1)
    except (TorporError, OSError) as error:
        sys.exit(f"srun, in a job under torpor: {error}")
