"""A step below a supervisor: what srun(1) would have slurmstepd do, done by a process of the job's own tree.

slurmstepd starts the tasks of a real step, not srun. They would not be in a snapshot, and a woken srun would find its
connection to them gone, and exit with 0. So the supervisor puts a script named srun first in the application's PATH;
that script runs this package:

    options -> room -> tasks -> tender

*options* reads the command line and refuses what matters and cannot be had (another node, GPUs). *room* waits until the
allocation has processors for the step, as Slurm would. *tasks* starts the tasks, each with the environment, files and
processors that Slurm would have given it; a single one takes this process's own place. *tender* stays as their parent:
it hands signals on, merges their output line by line, and ends with the highest of their codes. The ranks of MPI are
started by its own launcher (*mpi*).

Everything here is in memory as long as the step is, and in every snapshot of the job: it imports little.
"""
