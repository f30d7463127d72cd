"""A job of Slurm's in its words."""

from __future__ import annotations

LINE = (
    "JobId=1 JobName=job.sh UserId=u(1001) JobState=RUNNING Reason=None Dependency=(null) Requeue=1 Restarts=0"
    " BatchFlag=1 ExitCode=0:0 RunTime=00:00:45 TimeLimit=01:00:00 StartTime=2026-11-23T05:44:26"
    " EndTime=2026-11-23T06:44:26 PreemptEligibleTime=2026-11-23T05:44:26 PreemptTime=None Partition=low NodeList=n1"
)


def environment(**more: str) -> dict[str, str]:
    return {"SLURM_JOB_ID": "12", "SLURM_CLUSTER_NAME": "c", "SLURMD_NODENAME": "n1", "ENVIRONMENT": "BATCH", **more}
