"""Slurm: freeze a job when it is preempted, and wake it when it is requeued."""
