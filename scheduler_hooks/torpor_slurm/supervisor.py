"""`torpor run` in a Slurm job: the supervisor. It is the batch process, and the application runs below it.

    begin -> wake or start -> wait -> warned: why? -> save and kill -> requeue -> exit

It notices Slurm's warnings (by a sentinel step, by signals, and by the time limit), asks the controller for the cause,
saves the application, and exits. When Slurm starts the job again, on any node, it wakes the newest snapshot. The
application's output, signals and exit status are as without Torpor.
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
from torpor.processes import Signals, inherited_environment, inherited_signals, portable_environment
from torpor_slurm import another_run, beginning, controller, filters, lifeline, mpi_environment
from torpor_slurm.allocation import ENV_FILE, Allocation
from torpor_slurm.beginning import Beginning, Script, patiently
from torpor_slurm.controller import JobRecord
from torpor_slurm.guard import Guard
from torpor_slurm.job_directory import JobDirectory, StoreMissing
from torpor_slurm.messages import name_of, tell
from torpor_slurm.preemption_cause import REACTIONS, Cause, Finding, find_cause, is_running
from torpor_slurm.rebinding import rebind
from torpor_slurm.run_options import Options
from torpor_slurm.saving import Saving
from torpor_slurm.script_around import ScriptAround
from torpor_slurm.sentinel import Sentinel
from torpor_slurm.step import job_processes, processors
from torpor_slurm.waking import wake

POLL_SECONDS = 5.0
"""Seconds between two checks for a later run and for the time limit."""
SHORT_POLL_SECONDS = 0.2
"""Seconds between two checks while the sentinel is being started."""
LEFT_AT_TIME_LIMIT = 124
"""Exit code of a job that was saved at its time limit and not requeued: that of timeout(1)."""
FENCED = 75
"""Exit code of a run that finds a later run of the same job: EX_TEMPFAIL of sysexits.h."""

MIN_LEAD_SECONDS = 15.0
"""Even the smallest job is saved this many seconds before its time limit: the controller may be slow to answer."""

FORWARDED = frozenset(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE}
"""Signals that the supervisor blocks, and forwards to the application: also those that it was started to ignore, since
the application may catch them (they come, as blocked signals do: sig_ignored(), kernel 2.6).
SIGSEGV and the like are among them: if the supervisor itself faults, they kill it although they are blocked
(force_sig(), kernel 2.6). So one that it can receive was sent by another process. SIGPIPE is not among them: the
supervisor's own writes may cause it.
"""
_HARMLESS = (
    *(signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH),
    *(signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),
)
WARNINGS = FORWARDED - {*_HARMLESS}
"""Signals that kill a program which does not catch them. Slurm may send any of them as a warning (--signal)."""


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
        RestoreRefused, RestoreFailed, ImageDamaged: its snapshots cannot be woken, and it must not start anew.
        NotFound, StoreError, SlurmError: there is no such program, no store, or no answer of the controller.
    """
    given = inherited_signals()
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
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
        """The signals that the application ignores and blocks from its start."""
        self.allocation = allocation
        self.directory = directory
        self.options = options
        self.script = ScriptAround(allocation)
        self.here = Beginning(directory)
        self.guard = Guard(directory.job, allocation.restarts, options)
        self.record: JobRecord
        self.job: Job
        self.saving = Saving(directory, allocation.restarts, options.with_files)
        self.leaving: Finding | None = None
        """Why the job has to end, while it could not be saved yet; None otherwise."""
        self.unexplained: list[int | None] = []
        """Warnings (arguments of `_warned`) whose cause the controller has not told yet."""
        self.retry_at = 0.0
        """When to try again to save, or to ask for the cause (time.monotonic())."""
        self.warned = False
        """Whether SIGTERM has come, or any warning at the end; the application may have got the same signal."""
        self.forwarded: set[int] = set()
        """The signals of WARNINGS that were forwarded to the application."""
        self.next_save = float("inf")
        """When the next regular save is due (time.monotonic())."""
        self.gone = False
        """Whether the supervisor has killed the application: it was saved, or a later run has begun."""
        self.asked_to_end = False
        """Whether a signal was forwarded that Slurm sent to end the job: the application may end because of it."""

    # ------------------------------------------------------------------------------------------- the story

    def run(self) -> int:
        """See `supervise`."""
        began = time.monotonic()
        self.record = beginning.first_record(self.directory.job, self.allocation.restarts)
        self.guard.post()
        try:
            self._begin()
            self.guard.sign()
            if finished := self.here.finished:
                beginning.tell_finished(self.here, self.command)
                return finished.code
            job = patiently(self._wake, self.allocation, self.directory.base) if self.here.found else None
        except (StoreMissing, StoreError) as error:
            if self.allocation.restarts == 0:
                raise
            beginning.put_back(self.directory.job, error)
            self.script.wait_for_its_end()
            return 0
        word = "started" if job is None else "resumed"
        if job is None:
            beginning.start_over(self.here, self.allocation, self.options)
            job = self._start()
        self.job = job
        lifeline.tie(job)
        if word == "resumed":
            count = processors.count(self.allocation.variables)
            rebind(job.tree_pid, self.directory.state.get("processors", []), count)
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
        self.here.notes += self.script.warnings(self.record.partition)
        self.saving = Saving(self.directory, self.allocation.restarts, self.options.with_files)

    def _start(self) -> Job:
        stand_ins = self.directory.stand_ins
        command = [str(stand_ins / "srun"), *self.command[1:]] if self.command[0] == "srun" else self.command
        given = inherited_environment()
        environment = {
            **mpi_environment.variables(self.directory.path, tcp=self.options.mpi == "tcp"),
            **(portable_environment(self.options.portable, given) if self.options.portable else given),
            "PATH": f"{stand_ins}:{os.environ.get('PATH', os.defpath)}",
            ENV_FILE: str(self.directory.environment_file),
        }
        return start(command, environment=environment, signals=self.given)

    def _wake(self) -> Job | None:
        return wake(self.here, self.allocation, self.options, self.saving.series)

    def _watch(self, sentinel: Sentinel) -> int:
        """Wait for the application to end, or for a reason to save it and exit."""
        self.next_save = self._next_save()
        while (code := self.job.poll()) is None:
            self.guard.sign()
            wake_at = self.retry_at if self.leaving or self.unexplained else self.next_save
            poll = SHORT_POLL_SECONDS if sentinel.starting else POLL_SECONDS
            received = signal.sigtimedwait(FORWARDED, min(poll, max(0.0, wake_at - time.monotonic())))
            number = None if received is None else received.si_signo
            try:
                left = self._react(number, sentinel)
            except Exception as error:  # any error, also a defect of Torpor: the job must survive it, and runs on
                if self.gone:
                    raise
                self.saving.failures.tell("the job runs on after an error", error)
                self.retry_at = time.monotonic() + controller.RETRY
            else:
                if left is not None:
                    return left
        code = self._ended(code)
        filters.wait_for_end(self.directory.environment_file)
        return code

    def _react(self, number: int | None, sentinel: Sentinel) -> int | None:
        """Do what is due. Return the exit code if the run ends, None if it goes on.

        Args:
            number: the signal that has come, if any.
            sentinel: the step that Slurm ends when a grace time starts.
        """
        if self.directory.is_fenced(self.allocation.restarts):
            return self._abandon()
        if number in WARNINGS:
            return self._warned(number)
        if number is not None and number != signal.SIGCHLD:
            self._forward(number)
        elif sentinel.has_started():
            return self._warned_before()
        elif sentinel.ended():
            return self._step_ended(sentinel.signal)
        elif answer := self._reason_to_leave():
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
        """If an error occurs while a warning is handled, keep the warning for later: Slurm sends it only once."""
        try:
            yield
        except Exception:
            self.unexplained.append(number)
            raise

    def _warned(self, number: int | None, *, before: bool = False) -> int | None:
        """Ask the controller for the cause of a warning, and act on it.

        Args:
            number: the signal that came; None: the sentinel has ended.
            before: whether the controller was asked before, and did not answer.

        Returns:
            The exit code if the run ends, None if it goes on.
        """
        with self._remembering(number):
            return self._handle_warning(number, before=before)

    def _handle_warning(self, number: int | None, *, before: bool) -> int | None:
        self.warned = self.warned or number == signal.SIGTERM
        news = f"received {name_of(number)}" if number else "the sentinel step was ended"
        answer = self._find_cause(number) or self.leaving
        deadly = number is not None and processes.dies_of(self.job.tree_pid, number)
        late = before or answer is None
        if not before and (answer is None or (answer.cause is Cause.OTHER and deadly)):
            self._save("run")  # the application may die of the signal: save it before
            answer = self._find_cause(number)
        if answer is None:
            if number is not None and not deadly:
                self._forward(number, asks_to_end=True)
            self.unexplained.append(number if deadly else None)
            self.retry_at = time.monotonic() + controller.RETRY
            return None
        self.directory.log(f"{news}: {answer.cause.value}")
        if not REACTIONS[answer.cause].leaves:
            self.asked_to_end, self.leaving = False, None
            self.saving.let_go()
            if answer.cause is Cause.REQUEUED_ITSELF:
                self.next_save = float("inf")
            # Slurm lets the job run. If its answer comes late, do not kill the job by an old signal without a reason.
            if number is not None and not (late and deadly and answer.cause is Cause.OTHER):
                self._forward(number, asks_to_end=answer.cause is not Cause.OTHER)
            return None
        return self._leave(answer, number)

    def _step_ended(self, number: int | None) -> int | None:
        """Find out why the sentinel step has ended, and act on it. Returns as `_warned`.

        If Slurm gives no reason, somebody has signalled the job's steps. Then the tasks below srun get the signal, as
        they would from Slurm without Torpor.
        """
        left = self._warned(None)
        if (
            left is None
            and number in WARNINGS
            and not self.unexplained
            and self._finding(warned=False).cause is Cause.OTHER
        ):
            tasks = job_processes.tasks({ENV_FILE: str(self.directory.environment_file)})
            if any(processes.dies_of(pid, number) for pid in tasks):
                self._save("run")
            job_processes.send_signal(tasks, number)
            self.forwarded.add(number)
            self.directory.log(f"forwarded {name_of(number)} to {len(tasks)} tasks of steps")
        return left

    def _ask_again(self) -> int | None:
        """Ask for the causes of the warnings that are not explained yet. Returns as `_warned`."""
        for number in dict.fromkeys(self.unexplained):
            self.unexplained = [other for other in self.unexplained if other != number]
            if (left := self._warned(number, before=True)) is not None:
                return left
        return None

    def _warned_before(self) -> int | None:
        """Ask whether a grace time began before the sentinel had started. Returns as `_warned`."""
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
        return self._finding(warned=number is not None)

    def _finding(self, *, warned: bool) -> Finding:
        return find_cause(
            self.record,
            restarts=self.allocation.restarts,
            now=time.time(),
            lead=self._lead_seconds(),
            warned=warned,
            deadline=self.leaving.deadline if self.leaving else None,
            itself=self.directory.own_requeue.exists(),
        )

    def _leave(self, answer: Finding, number: int | None = None) -> int | None:
        """Save and kill the application, and requeue the job if needed. Return the exit code, None if saving failed."""
        began = time.monotonic()
        self.leaving = answer
        if not self._save("kill"):
            self.retry_at = time.monotonic() + self.saving.next_retry()
            if number is not None and not processes.dies_of(self.job.tree_pid, number):
                self.saving.hold(number, answer.deadline)  # a retry may save it before it reacts
            if due := self.saving.due():
                self._forward(due, asks_to_end=True)
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

    def _reason_to_leave(self) -> Finding | None:
        """Why to leave: the end is near, and not postponed, or a grace time began unseen. None: there is no reason."""
        record = self.record
        if self.leaving is not None or not record.limited or record.end is None:
            return None
        if record.end - time.time() > self._lead_seconds():
            return None
        try:
            self.record = controller.job_record(self.directory.job)
        except TorporError as error:
            self.directory.log(f"the time limit is near, and Slurm does not say whether it holds: {error}")
        answer = self._finding(warned=False)
        return answer if REACTIONS[answer.cause].leaves else None

    def _lead_seconds(self) -> float:
        """How many seconds before its time limit the job is saved: twice the time of a save, at most half the limit."""
        need = MIN_LEAD_SECONDS + 2 * processes.resident(self.job.tree_pid) / self.saving.rate
        if self.record.start is None or self.record.end is None:
            return need
        return min(need, (self.record.end - self.record.start) / 2)

    def _abandon(self) -> int:
        """Kill the application: a later run has begun, so Slurm took this node for dead, and this is a second copy."""
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
        """Handle the end of the application: it has finished, or Slurm has ended it before it was saved."""
        if self.directory.is_fenced(self.allocation.restarts):
            return self._abandon()  # how this second copy ended says nothing about the job
        while signal.sigtimedwait(WARNINGS, 0):  # a signal that comes at the same moment may have ended it
            self.warned = True
        # It did not finish: a warning killed it, it reacted to one, or the OOM killer or somebody sent SIGKILL.
        early = -code in self.forwarded or self.asked_to_end or code == -signal.SIGKILL
        warned = self.warned or self.leaving is not None
        doubtful = early or code == -signal.SIGTERM or (code != 0 and warned)
        answer = self._why_it_ended() if warned else self._find_cause(None)
        if answer is None:
            slurms = doubtful or warned
        else:  # without cgroups Slurm signals the application itself, which may react by any exit code
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
        """Ask for the cause, up to FIRST_ANSWER seconds: a job does not end while its controller is down."""
        until = time.monotonic() + beginning.FIRST_ANSWER
        while (answer := self._find_cause(None)) is None and time.monotonic() < until:
            time.sleep(controller.RETRY)
        return answer

    def _ended_early(self, code: int, answer: Finding | None) -> int:
        """Handle an application that did not finish: Slurm has ended it, or the user has (scancel)."""
        cause = answer.cause.value if answer else "an unknown cause: Slurm did not answer"
        self.directory.log(f"the application was ended ({code}) because of {cause}")
        self.directory.update_state(phase="ended", cause=cause)
        if answer and answer.cause is Cause.REQUEUED_ITSELF:
            self._let_next_run_start_over()
        elif answer and self._requeues(answer.cause) and (answer.cause is Cause.PREEMPTED or self.saving.succeeded):
            # At a time limit only if a save has succeeded: otherwise every run would end here, and none get further.
            another_run.request(self.directory, self.allocation.restarts, answer.deadline)
            self.script.wait_for_its_end()
        elif answer and answer.cause is Cause.REQUEUED:
            if code >= 0 and not self.asked_to_end:
                self._record_end(self.directory.own_end)
            self.script.wait_for_its_end()
        elif answer and answer.cause is Cause.OTHER:
            self._record_end(self.directory.end, code)  # the OOM killer ended it, say: the script goes on
        return code

    def _record_end(self, what: Callable[..., None], *arguments: int) -> None:
        try:
            what(self.allocation.restarts, *arguments)
        except TorporError as error:
            self.directory.log(f"the end of the application is not noted: {error}")

    def _requeues(self, cause: Cause) -> bool:
        return REACTIONS[cause].requeues or (cause is Cause.TIME_LIMIT and self.options.on_timeout == "requeue")

    def _let_next_run_start_over(self) -> None:
        """Make the next run start the application anew: it has requeued its own job, and then ended in its own way."""
        self._record_end(self.directory.own_end)
        try:
            self.directory.forget(self.allocation.restarts)
        except TorporError as error:
            tell(f"the application has requeued its job, but its older snapshots cannot be removed: {error}")

    def _forward(self, number: int, *, asks_to_end: bool = False) -> None:
        self.forwarded |= {number} & WARNINGS
        self.asked_to_end = self.asked_to_end or asks_to_end
        with suppress(ProcessLookupError):
            self.job.send_signal(number)
