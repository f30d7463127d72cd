"""srun(1) for jobs that Torpor supervises: it starts a step's tasks as descendants of the job's own process tree.

The tasks of a real step are children of slurmstepd, not of srun. They would not be in a snapshot, and a woken srun
would find its connection to them gone, and exit with 0. So the supervisor puts a script named srun first in the
application's PATH. That script runs this package:

    options -> processors -> tasks -> task_parent

*options* reads the command line, and refuses options that matter but cannot be honoured here (another node, GPUs).
*processors* waits until the allocation has free processors for the step, as Slurm would. *tasks* starts the tasks, each
with the environment, files and processors that Slurm would have given it; a single task replaces this process by
execve(). *task_parent* stays as the parent of the tasks: it forwards signals to them, merges their output line by line,
and exits with the highest of their exit codes. MPI ranks are started by the launcher of their MPI library (*mpi*).

This code stays in memory while the step runs, and is part of every snapshot of the job. So it imports little.
"""
