"""A job that requeues itself: `scontrol requeue $SLURM_JOB_ID; exit 0`, as the manuals of clusters recommend.

To Slurm, this is a requeue like any other. But the application is about to exit: if it were saved and woken, it would
only exit in the next run, and count as finished. So a script named scontrol comes first in the application's PATH.
Before it calls the real scontrol to requeue this job, it creates a file. The supervisor then lets the application end,
and the next run begins anew. A requeue by other means (an absolute path, a library) is noticed only when the
application has ended, by Slurm's count of restarts.
"""

from __future__ import annotations

import shlex

from torpor_slurm.allocation import Allocation
from torpor_slurm.job_directory import JobDirectory
from torpor_slurm.shell import shebang

_SCRIPT = """\
# scontrol, in a job under torpor: a requeue of this very job is noted for its supervisor.
own={own} mark={mark} real= verb= itself=
set -f
IFS=:
for folder in $PATH; do
	if [ "$folder" != "$own" ] && [ -f "${{folder:-.}}/scontrol" ] && [ -x "${{folder:-.}}/scontrol" ]; then
		real=${{folder:-.}}/scontrol
		break
	fi
done
unset IFS
if [ -z "$real" ]; then
	echo "scontrol, in a job under torpor: there is no program scontrol in PATH" >&2
	exit 127
fi
for word; do
	if [ -n "$verb" ]; then
		case ",${{word#*=}}," in {ids}) itself=1 ;; esac
	else
		case $word in *=*) ;; [Rr][Ee][Qq]*) verb=$word ;; esac
	fi
done
[ -n "$itself" ] || exec "$real" "$@"
echo >"$mark"
"$real" "$@" || {{
	code=$?
	rm -f "$mark"
	exit $code
}}
"""


def script(directory: JobDirectory, allocation: Allocation) -> str:
    """The script that stands in for scontrol in the application's PATH. It is the same in every run of a job."""
    ids = [allocation.job]
    if array := allocation.variables.get("SLURM_ARRAY_JOB_ID"):
        ids += [array, f"{array}_{allocation.variables.get('SLURM_ARRAY_TASK_ID', '')}"]
    return shebang() + _SCRIPT.format(
        own=shlex.quote(str(directory.stand_ins)),
        mark=shlex.quote(str(directory.own_requeue)),
        ids=" | ".join(f"*{shlex.quote(f',{one},')}*" for one in ids),
    )
