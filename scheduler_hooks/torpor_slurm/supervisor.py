"""`torpor run` in a Slurm job: the supervisor. It is the batch process, and the application runs below it.

    begin -> wake or start -> wait -> warned: why? -> save and kill -> requeue -> exit

It notices Slurm's warnings (a sentinel step, signals, the time limit), asks the controller for the cause, saves the
application, and exits. When Slurm starts the job again, on whichever node, it wakes the newest snapshot. It changes
nothing of the application's output, signals and exit status.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Literal

from torpor import Job, processes, start
from torpor.errors import StoreError, TorporError
from torpor.processes import Signals, inherited_environment, inherited_signals
from torpor_slurm import another_run, beginning, controller, lifeline, mpi_environment
from torpor_slurm.allocation import ENV_FILE, Allocation
from torpor_slurm.beginning import Beginning, Script, patiently
from torpor_slurm.controller import JobRecord
from torpor_slurm.job_directory import Finished, JobDirectory, StoreMissing
from torpor_slurm.messages import name_of, tell
from torpor_slurm.preemption_cause import REACTIONS, Cause, Finding, find_cause, is_running
from torpor_slurm.rebinding import rebind
from torpor_slurm.run_options import Options
from torpor_slurm.saving import Saving
from torpor_slurm.script_around import ScriptAround
from torpor_slurm.sentinel import Sentinel
from torpor_slurm.step import kin, room
from torpor_slurm.waking import wake

PULSE = 5.0
"""Seconds between two checks for a later run and for the time limit."""
SHORT_PULSE = 0.2
"""The same while the sentinel is being started."""
LEFT_AT_TIME_LIMIT = 124
"""Exit code of a job that was saved at its time limit and not requeued: that of timeout(1)."""
FENCED = 75
"""Exit code of a run that finds a later run of the same job: EX_TEMPFAIL of sysexits.h."""

LEAST_LEAD = 15.0
"""Seconds before its time limit at which even the smallest job is saved: the controller may take some to answer."""

HEARD = frozenset(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE}
"""Signals that the supervisor receives for the application.

Also those of faults: a fault of the supervisor's own ends it although they are blocked (force_sig(), kernel 2.6), so
that one that is received was sent. Not SIGPIPE: a write of the supervisor's own sends it.
"""
_HARMLESS = (
    *(signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH),
    *(signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),
)
WARNINGS = HEARD - {*_HARMLESS}
"""Signals that end a program which does not catch them; Slurm may send any as a warning (--signal)."""


def supervise(
    command: Sequence[str],
    allocation: Allocation,
    directory: JobDirectory,
    options: Options,
    embedded: Script | None = None,
) -> int:
    """Run a command as the application of a Slurm job, or wake it from where its last run saved it.

    To be called by the main thread of a program that does nothing else.

    Returns:
        The application's exit code, or minus the number of the signal that killed it; 0 when the job was requeued.

    Raises:
        Refused: the job cannot be saved (several nodes, GPUs), or has a supervisor already.
        RestoreRefused, RestoreFailed, ImageDamaged: its snapshots cannot be woken, and it may not start anew.
        NotFound, StoreError, SlurmError: no such program; no store; no controller.
    """
    given = inherited_signals()
    signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
    try:
        return Supervisor(command, allocation, directory, options, given, embedded).run()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, given.blocked)


class Supervisor:
    """One run of one job, in one thread: a warning that comes during a save is handled after it."""

    def __init__(
        self,
        command: Sequence[str],
        allocation: Allocation,
        directory: JobDirectory,
        options: Options,
        given: Signals,
        embedded: Script | None = None,
    ) -> None:
        self.command = command
        self.embedded = embedded
        """The script of `torpor sbatch`, if that is what the command runs."""
        self.given = given
        """The signals that the application ignores and blocks from its start. Ignored ones are not passed on."""
        self.allocation = allocation
        self.directory = directory
        self.options = options
        self.script = ScriptAround(allocation)
        self.here = Beginning(directory)
        self.record: JobRecord
        self.job: Job
        self.saving = Saving(directory, allocation.restarts)
        self.leaving: Finding | None = None
        """Why the job has to end, as long as it could not be saved."""
        self.unexplained: list[int | None] = []
        """Warnings, as in `_warned`, for which the controller has not given the cause yet."""
        self.retry_at = 0.0
        """When saving, or asking for the cause, is tried again (time.monotonic())."""
        self.warned = False
        """Whether SIGTERM has come, or any warning as it ended. Slurm may have sent it to the application, too."""
        self.handed: set[int] = set()
        """The signals of WARNINGS that were handed on."""
        self.next_save = float("inf")
        """When it is saved though nobody has warned it (time.monotonic())."""
        self.gone = False
        """Whether the application has been ended, saved or since a later run has begun."""
        self.urged = False
        """Whether one was that Slurm sent to end the job: how the application ends may be its answer to it."""

    # ------------------------------------------------------------------------------------------- the story

    def run(self) -> int:
        """See `supervise`."""
        began = time.monotonic()
        self.record = beginning.first_record(self.directory.job, self.allocation.restarts)
        try:
            self._begin()
            if finished := self.here.finished:
                return self._finished_before(finished)
            job = patiently(self._wake, self.allocation, self.directory.base) if self.here.found else None
        except (StoreMissing, StoreError) as error:
            if self.allocation.restarts == 0:
                raise
            beginning.put_back(self.directory.job, error)
            self.script.wait_for_its_end()
            return 0
        word = "started" if job is None else "resumed"
        if job is None:
            beginning.anew(self.here, self.allocation, self.options)
            job = self._start()
        self.job = job
        lifeline.tie(job)
        if word == "resumed":
            rebind(job.tree_pid, self.directory.state.get("processors", []), room.size(self.allocation.variables))
        for words in (*self.here.notes, *(f"note: {warning}" for warning in job.warnings)):
            tell(words)
        took = time.monotonic() - began
        self.directory.log(f"run {self.allocation.restarts} {word} on {self.allocation.node} in {took:.2f} s")
        self.directory.update_state(
            name=self.record.name,
            partition=self.record.partition,
            node=self.allocation.node,
            run=self.allocation.restarts,
            place=self.directory.place,
            phase="running",
            processors=sorted(os.sched_getaffinity(0)),
            begin_seconds=took,
        )
        with Sentinel(self.allocation, self.directory.log) as sentinel:
            return self._watch(sentinel)

    def _begin(self) -> None:
        begin = partial(beginning.begin, self.directory, self.allocation, self.record, self.command, self.embedded)
        self.here = patiently(begin, self.allocation, self.directory.base)
        self.directory = self.here.directory
        self.saving = Saving(self.directory, self.allocation.restarts)

    def _finished_before(self, finished: Finished) -> int:
        """Exit as the command did in an earlier run."""
        name = os.path.basename(self.command[0])
        already = f"{name} of job {self.directory.job} has finished already, with exit code {finished.code}"
        tell(f"{already}: remove {self.directory.path} to run it again")
        return finished.code

    def _start(self) -> Job:
        stand_ins = self.directory.stand_ins
        command = [str(stand_ins / "srun"), *self.command[1:]] if self.command[0] == "srun" else self.command
        path = f"{stand_ins}:{os.environ.get('PATH', os.defpath)}"
        environment = {
            **mpi_environment.variables(self.directory.path, tcp=self.options.mpi == "tcp"),
            **inherited_environment(),
            "PATH": path,
            ENV_FILE: str(self.directory.environment_file),
        }
        return start(command, environment=environment, signals=self.given)

    def _wake(self) -> Job | None:
        return wake(self.here, self.allocation, self.options, self.saving.series)

    def _watch(self, sentinel: Sentinel) -> int:
        """Wait for the application to end, or for a reason to save it and exit."""
        self.next_save = self._next_save()
        while (code := self.job.poll()) is None:
            wake_at = self.retry_at if self.leaving or self.unexplained else self.next_save
            pulse = SHORT_PULSE if sentinel.starting else PULSE
            heard = signal.sigtimedwait(HEARD, min(pulse, max(0.0, wake_at - time.monotonic())))
            number = None if heard is None else heard.si_signo
            try:
                left = self._react(number, sentinel)
            except Exception as error:  # also a fault of ours: it must not cost the job, which runs on
                if self.gone:
                    raise
                self.saving.failures.tell("the job runs on after an error", error)
                self.retry_at = time.monotonic() + controller.RETRY
            else:
                if left is not None:
                    return left
        return self._ended(code)

    def _react(self, number: int | None, sentinel: Sentinel) -> int | None:
        """Do what is due; the exit code if the run ends.

        Args:
            number: the signal that has come, if any.
            sentinel: what tells of the start of a grace time.
        """
        if self.directory.is_fenced(self.allocation.restarts):
            return self._abandon()
        if number in WARNINGS:
            return self._warned(number)
        if number is not None and number != signal.SIGCHLD:
            self._hand_on(number)
        elif sentinel.listens():
            return self._warned_before()
        elif sentinel.ended():
            return self._step_ended(sentinel.signal)
        elif answer := self._end_is_near():
            return self._leave(answer)
        elif self.leaving is not None and time.monotonic() >= self.retry_at:
            return self._leave(self.leaving)
        elif self.unexplained and time.monotonic() >= self.retry_at:
            return self._ask_again()
        elif self.leaving is None and time.monotonic() >= self.next_save:
            self._save("run")
            self.next_save = self._next_save()
        return None

    def _next_save(self) -> float:
        return float("inf") if self.options.every is None else time.monotonic() + self.options.every

    # ------------------------------------------------------------------------------------------- leaving

    @contextmanager
    def _remembering(self, number: int | None) -> Iterator[None]:
        """Whatever goes wrong with a warning, it comes but once: it is dealt with again later."""
        try:
            yield
        except Exception:
            self.unexplained.append(number)
            raise

    def _warned(self, number: int | None, *, before: bool = False) -> int | None:
        """Ask the controller for the cause, and act on it: the exit code if the run ends, None if it goes on.

        Args:
            number: the signal that came; None: the sentinel has ended.
            before: the question was asked before, and not answered.
        """
        with self._remembering(number):
            return self._deal_with(number, before=before)

    def _deal_with(self, number: int | None, *, before: bool) -> int | None:
        self.warned = self.warned or number == signal.SIGTERM
        heard = f"heard {name_of(number)}" if number else "the sentinel heard the start of a grace time"
        answer = self._find_cause(number) or self.leaving
        deadly = number is not None and processes.dies_of(self.job.tree_pid, number)
        late = before or answer is None
        if not before and (answer is None or (answer.cause is Cause.OTHER and deadly)):
            self._save("run")  # whatever comes, nothing is lost
            answer = self._find_cause(number)
        if answer is None:
            if number is not None and not deadly:
                self._hand_on(number, urge=True)
            self.unexplained.append(number if deadly else None)
            self.retry_at = time.monotonic() + controller.RETRY
            return None
        self.directory.log(f"{heard}: {answer.cause.value}")
        if not REACTIONS[answer.cause].leaves:
            self.urged, self.leaving = False, None
            if answer.cause is Cause.REQUEUED_ITSELF:
                self.next_save = float("inf")
            # Slurm lets it run: a signal from when the controller was away is no reason to end it.
            if number is not None and not (late and deadly and answer.cause is Cause.OTHER):
                self._hand_on(number, urge=answer.cause is not Cause.OTHER)
            return None
        return self._leave(answer, number)

    def _step_ended(self, number: int | None) -> int | None:
        """Find out why; as `_warned`.

        If Slurm has no reason, the signal was for the steps: plain Slurm would have sent it to what srun has started.
        """
        left = self._warned(None)
        if (
            left is None
            and number in WARNINGS
            and not self.unexplained
            and self._judge(warned=False).cause is Cause.OTHER
        ):
            tasks = kin.tasks({ENV_FILE: str(self.directory.environment_file)})
            if any(processes.dies_of(pid, number) for pid in tasks):
                self._save("run")
            kin.send_signal(tasks, number)
            self.handed.add(number)
            self.directory.log(f"handed {name_of(number)} on to {len(tasks)} tasks of steps")
        return left

    def _ask_again(self) -> int | None:
        """Ask for the causes of the warnings that are not explained yet; as `_warned`."""
        for number in dict.fromkeys(self.unexplained):
            self.unexplained = [other for other in self.unexplained if other != number]
            if (left := self._warned(number, before=True)) is not None:
                return left
        return None

    def _warned_before(self) -> int | None:
        """Ask whether a grace time began before the sentinel had started; the exit code if the run ends."""
        with self._remembering(None):
            answer = self._find_cause(None)
        if answer is None or answer.cause not in (Cause.PREEMPTED, Cause.REQUEUED):
            return None
        self.directory.log(f"a warning came before the sentinel had started: {answer.cause.value}")
        return self._leave(answer)

    def _find_cause(self, number: int | None) -> Finding | None:
        try:
            self.record = controller.job_record(self.directory.job)
        except TorporError as error:
            self.directory.log(f"warned, but Slurm does not say why: {error}")
            return None
        return self._judge(warned=number is not None)

    def _judge(self, *, warned: bool) -> Finding:
        return find_cause(
            self.record,
            restarts=self.allocation.restarts,
            now=time.time(),
            lead=self._lead(),
            warned=warned,
            deadline=self.leaving.deadline if self.leaving else None,
            itself=self.directory.own_requeue.exists(),
        )

    def _leave(self, answer: Finding, number: int | None = None) -> int | None:
        """Save and kill the application, requeue the job if needed, and give the exit code; None: saving failed."""
        began = time.monotonic()
        self.leaving = answer
        if not self._save("kill"):
            self.retry_at = time.monotonic() + self.saving.next_retry()
            if number is not None and not processes.dies_of(self.job.tree_pid, number):
                self._hand_on(number, urge=True)  # it may do what it can; what dies of it may yet be saved instead
            return None
        self.gone = True
        self.job.wait()
        saved = time.monotonic() - began
        if self._requeues(answer.cause):
            another_run.request(self.directory, self.allocation.restarts, answer.deadline)
        took = time.monotonic() - began
        self.directory.log(f"left because of {answer.cause.value}: saved in {saved:.2f} s, gone after {took:.2f} s")
        self.directory.update_state(phase="left", cause=answer.cause.value, leave_seconds=took)
        if answer.cause is Cause.TIME_LIMIT and self.options.on_timeout == "stop":
            tell(f"saved at the time limit; `scontrol requeue {self.directory.job}` lets it go on")
            return LEFT_AT_TIME_LIMIT
        self.script.wait_for_its_end()
        return 0

    def _end_is_near(self) -> Finding | None:
        """Why the job has to end soon, if its end is near. If so, ask first whether it was put off.

        What is near may also be the end of a grace time that nobody has heard of yet.
        """
        record = self.record
        if self.leaving is not None or not record.limited or record.end is None:
            return None
        if record.end - time.time() > self._lead():
            return None
        try:
            self.record = controller.job_record(self.directory.job)
        except TorporError as error:
            self.directory.log(f"the time limit is near, and Slurm does not say whether it holds: {error}")
        answer = self._judge(warned=False)
        return answer if REACTIONS[answer.cause].leaves else None

    def _lead(self) -> float:
        """Seconds before its time limit at which the job is saved: twice what a save takes, at most half the limit."""
        need = LEAST_LEAD + 2 * processes.resident(self.job.tree_pid) / self.saving.rate
        if self.record.start is None or self.record.end is None:
            return need
        return min(need, (self.record.end - self.record.start) / 2)

    def _abandon(self) -> int:
        """Kill the application: there is a later run, and this one is a copy on a node that Slurm took for dead."""
        self.directory.log(f"run {self.allocation.restarts} on {self.allocation.node} found a later one: it ends")
        self.gone = True
        with suppress(ProcessLookupError):
            self.job.send_signal(signal.SIGKILL)
        self.job.wait()
        return FENCED

    def _save(self, then: Literal["run", "kill"]) -> bool:
        return self.saving.save(self.job.tree_pid, then, self.here.found)

    # ------------------------------------------------------------------------------------------- the end

    def _ended(self, code: int) -> int:
        """The application has ended: by itself, or because Slurm ended it before it was saved."""
        if self.directory.is_fenced(self.allocation.restarts):
            return self._abandon()  # what became of this copy says nothing of the job
        while signal.sigtimedwait(WARNINGS, 0):  # what comes in the same moment may have ended it
            self.warned = True
        # Of a warning that it did not catch, in answer to one, for want of memory, or by hand: not of its own accord.
        early = -code in self.handed or self.urged or code == -signal.SIGKILL
        warned = self.warned or self.leaving is not None
        doubtful = early or code == -signal.SIGTERM or (code != 0 and warned)
        answer = self._why_it_ended() if warned else self._find_cause(None)
        if answer is None:
            slurms = doubtful or warned
        else:  # without cgroups Slurm signals the application itself, and any exit code may be its answer
            ending = not is_running(self.record) or not REACTIONS[answer.cause].may_finish
            slurms = early or ending or (doubtful and answer.cause is not Cause.OTHER)
        if slurms:
            return self._ended_early(code, answer)
        self.directory.log(f"the application ended with {code}")
        self.directory.update_state(phase="finished", code=code)
        try:
            self.directory.finish(self.allocation.restarts, code)
        except TorporError as error:  # the application's exit code is what counts
            tell(f"the application ended with {code}, but this cannot be recorded: {error}")
        return code

    def _why_it_ended(self) -> Finding | None:
        """Ask as long as at the begin: there is no hurry, since a job does not end while its controller is away."""
        until = time.monotonic() + beginning.FIRST_ANSWER
        while (answer := self._find_cause(None)) is None and time.monotonic() < until:
            time.sleep(controller.RETRY)
        return answer

    def _ended_early(self, code: int, answer: Finding | None) -> int:
        """Slurm, or the user by scancel, ended the application: the job is not finished."""
        cause = answer.cause.value if answer else "an unknown cause: Slurm did not answer"
        self.directory.log(f"the application was ended ({code}) because of {cause}")
        self.directory.update_state(phase="ended", cause=cause)
        if answer and answer.cause is Cause.REQUEUED_ITSELF:
            self._begin_anew()
        elif answer and self._requeues(answer.cause) and (answer.cause is Cause.PREEMPTED or self.saving.succeeded):
            # At a time limit only if the next run gets further: it would come here for ever.
            another_run.request(self.directory, self.allocation.restarts, answer.deadline)
            self.script.wait_for_its_end()
        elif answer and answer.cause is Cause.REQUEUED:
            if code >= 0 and not self.urged:
                self._note(self.directory.own_end)
            self.script.wait_for_its_end()
        elif answer and answer.cause is Cause.OTHER:
            self._note(self.directory.end, code)  # not Slurm has ended it (but the OOM killer, say): the script goes on
        return code

    def _note(self, what: Callable[..., None], *arguments: int) -> None:
        try:
            what(self.allocation.restarts, *arguments)
        except TorporError as error:
            self.directory.log(f"the end of the application is not noted: {error}")

    def _requeues(self, cause: Cause) -> bool:
        return REACTIONS[cause].requeues or (cause is Cause.TIME_LIMIT and self.options.on_timeout == "requeue")

    def _begin_anew(self) -> None:
        """Have the next run start the application, which has requeued its job and ended as it does then."""
        self._note(self.directory.own_end)
        try:
            self.directory.forget(self.allocation.restarts)
        except TorporError as error:
            tell(f"the application has requeued its job, but its older snapshots cannot be removed: {error}")

    def _hand_on(self, number: int, *, urge: bool = False) -> None:
        if number in self.given.ignored:
            return
        self.handed |= {number} & WARNINGS
        self.urged = self.urged or urge
        with suppress(ProcessLookupError):
            self.job.send_signal(number)
