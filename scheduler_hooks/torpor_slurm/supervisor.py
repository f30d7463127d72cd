"""`torpor run` inside a Slurm job: the batch process, with the application's tree as its child.

    begin -> wake or start -> wait -> warned: why? -> save and kill -> requeue -> leave

It hears Slurm's warnings (a sentinel step, signals, its own look at the time limit), asks the controller why, and
leaves with everything saved. When Slurm starts the job again, on whichever node, it wakes the newest snapshot.
Everything else is the application's: its output, its signals, its exit status.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import torpor
from torpor import Files, Job, Snapshot, image, processes, start
from torpor.errors import (
    ImageDamaged,
    NotFound,
    Reason,
    Refused,
    RestoreFailed,
    RestoreRefused,
    StoreError,
    TorporError,
)
from torpor.processes import Signals, inherited_environment, inherited_signals
from torpor_slurm import controller, lifeline, rollback, srun_wrapper
from torpor_slurm.allocation import ENV_FILE, Allocation
from torpor_slurm.controller import JobRecord, SlurmError
from torpor_slurm.job_directory import RUN_TAG, JobDirectory
from torpor_slurm.preemption_cause import Cause, Finding, find_cause, is_cancelled
from torpor_slurm.sentinel import Sentinel

OnTimeout = Literal["requeue", "stop"]
OnRefused = Literal["older", "anew", "stop"]
Rollback = Literal["append-only", "none"]

PULSE = 5.0
"""Seconds between two looks at the fence and the clock."""
SHORT_PULSE = 0.2
"""The same while the sentinel is being started."""
RETRY = 3.0
"""Seconds after which what failed is tried again, while there is time."""
FIRST_ANSWER = 300.0
"""Seconds that the controller may be silent for when a run begins."""
LEFT_AT_TIME_LIMIT = 124
"""Exit code of a job that was saved at its time limit and not requeued: as timeout(1) has it."""
FENCED = 75
"""Exit code of a run that found a later one: EX_TEMPFAIL of sysexits.h."""

LEAST_LEAD = 15.0
"""Seconds before the time limit in which even the smallest job leaves: Slurm's own answer may take some."""
FIRST_RATE = 100e6
"""Bytes a second that a store is trusted with before it has shown what it can do."""

_FAULTS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGABRT, signal.SIGSYS)
HEARD = frozenset(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, *_FAULTS}
"""Signals that are heard in the application's place."""
WARNINGS = frozenset({signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT, signal.SIGXCPU})
"""Those that a site or a user may have Slurm send as a warning (--signal, preempt_send_user_signal)."""


@dataclass(frozen=True)
class Options:
    """What the user chose."""

    every: float | None = None
    """Save it after so many seconds, again and again; for nodes that die without a word."""
    on_timeout: OnTimeout = "stop"
    on_refused: OnRefused = "older"
    """When the newest snapshot cannot be woken here: an older one, or else anew, or not at all."""
    rollback_files: Rollback = "append-only"
    files: Files = "as-they-were"
    """Whether a snapshot is woken though its files were changed in place."""


def supervise(command: Sequence[str], allocation: Allocation, directory: JobDirectory, options: Options) -> int:
    """Run a command as the one application of a Slurm job, from where its last run left.

    To be called by the main thread of a program that does nothing else.

    Returns:
        The application's exit code, or minus the number of the signal that killed it; 0 when the job was requeued.

    Raises:
        Refused: the job cannot be kept by this (several nodes, GPUs, a second supervisor).
        RestoreRefused, RestoreFailed, ImageDamaged: its snapshots cannot be woken, and it is not to be begun anew.
        NotFound, StoreError, SlurmError: no such program; no store; no controller.
    """
    if finished := directory.finished:
        already = f"job {directory.job} has finished already, with exit code {finished.code}"
        _tell(f"{already}: remove {directory.path} to run it again")
        return finished.code
    given = inherited_signals()
    signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
    try:
        return Supervisor(command, allocation, directory, options, given).run()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, given.blocked)


def _tell(words: str) -> None:
    print(f"torpor: {words}", file=sys.stderr, flush=True)


class Supervisor:
    """One run of one job. All of it happens in one thread: a warning waits for a save that is under way."""

    def __init__(
        self, command: Sequence[str], allocation: Allocation, directory: JobDirectory, options: Options, given: Signals
    ) -> None:
        self.command = command
        self.given = given
        """What the application is to ignore and to block by its start; what is ignored is not handed on either."""
        self.allocation = allocation
        self.directory = directory
        self.options = options
        self.found: list[Snapshot] = []
        self.record: JobRecord
        self.job: Job
        self.rate = FIRST_RATE
        """Bytes of memory a second at which a save goes when all was written."""
        self.series = torpor.Series()
        self.leaving: Finding | None = None
        """Why it is to leave, while saving has failed so far."""
        self.told: set[str] = set()
        """What a wake will not bring back: each thing is told once."""
        self.retry_at = 0.0
        """When that is tried again (time.monotonic())."""
        self.warned = False
        """Whether SIGTERM came, which Slurm may have sent to the application as well."""

    # ------------------------------------------------------------------------------------------- the story

    def run(self) -> int:
        """See `supervise`."""
        began = time.monotonic()
        self.record = self._first_record()
        try:
            self.found = self.directory.begin(self.allocation.restarts, self.allocation.node, self.record.start)
            self.directory.write_environment(self.allocation.variables)
            self.directory.write_srun_wrapper(srun_wrapper.SCRIPT)
        except StoreError as error:
            error.advice += f"; then `scontrol requeue {self.directory.job}`: what is saved is kept"
            raise
        if not self.record.requeue:
            _tell("this job may not be requeued (submit it with --requeue): a preemption will end it, though saved")
        job = self._wake() if self.found else None
        word = "started" if job is None else "resumed"
        if job is None:
            job = self._start()
        self.job = job
        lifeline.tie(job)
        for warning in job.warnings:
            _tell(f"note: {warning}")
        took = time.monotonic() - began
        self.directory.log(f"run {self.allocation.restarts} {word} on {self.allocation.node} in {took:.2f} s")
        self._update_state(
            name=self.record.name,
            partition=self.record.partition,
            node=self.allocation.node,
            run=self.allocation.restarts,
            phase="running",
            begin_seconds=took,
        )
        with Sentinel(self.allocation) as sentinel:
            return self._watch(sentinel)

    def _start(self) -> Job:
        srun = self.directory.srun_wrapper
        command = [str(srun), *self.command[1:]] if self.command[0] == "srun" else self.command
        path = f"{srun.parent}:{os.environ.get('PATH', os.defpath)}"
        environment = {**inherited_environment(), "PATH": path, ENV_FILE: str(self.directory.environment_file)}
        return start(command, environment=environment, signals=self.given)

    def _first_record(self) -> JobRecord:
        """Ask for the job, with patience: where many jobs start at once a controller may be slow to answer."""
        until = time.monotonic() + FIRST_ANSWER
        while True:
            try:
                return controller.job_record(self.directory.job)
            except SlurmError:
                if time.monotonic() > until:
                    raise
            time.sleep(RETRY)

    def _watch(self, sentinel: Sentinel) -> int:
        """Wait for the end of the application, or for a reason to leave."""
        next_save = self._next_save()
        while (code := self.job.poll()) is None:
            wake_at = next_save if self.leaving is None else self.retry_at
            pulse = SHORT_PULSE if sentinel.starting else PULSE
            told = signal.sigtimedwait(HEARD, min(pulse, max(0.0, wake_at - time.monotonic())))
            if self.directory.is_fenced(self.allocation.restarts):
                return self._abandon()
            left: int | None = None
            if told is not None and told.si_signo in WARNINGS:
                left = self._warned(signal.Signals(told.si_signo))
            elif told is not None and told.si_signo != signal.SIGCHLD:
                self._hand_on(told.si_signo)
            elif sentinel.listens():
                left = self._warned_before()
            elif sentinel.ended():
                left = self._warned(None)
            elif self._time_is_up():
                left = self._leave(Finding(Cause.TIME_LIMIT, self.record.end))
            elif self.leaving is not None and time.monotonic() >= self.retry_at:
                left = self._leave(self.leaving)
            elif self.leaving is None and time.monotonic() >= next_save:
                self._save("run")
                next_save = self._next_save()
            if left is not None:
                return left
        return self._ended(code)

    def _next_save(self) -> float:
        return float("inf") if self.options.every is None else time.monotonic() + self.options.every

    # ------------------------------------------------------------------------------------------- waking

    def _wake(self) -> Job | None:
        """Wake the newest snapshot that can be woken; None: begin anew.

        Raises:
            RestoreRefused, RestoreFailed, ImageDamaged, NotFound: none can, and it is not to begin anew.
        """
        refused: list[str] = []
        for snapshot in self.found:
            try:
                job = self._wake_one(snapshot)
            except (RestoreRefused, RestoreFailed, ImageDamaged, NotFound) as error:
                self.directory.log(f"snapshot {snapshot.id} was not woken: {error}")
                if isinstance(error, RestoreRefused) and error.only_files:
                    error.advice = f"to do so: `torpor slurm requeue {self.directory.job} --files=as-they-are`"
                refused.append(f"snapshot {snapshot.id} cannot be woken on {self.allocation.node}: {error}")
                choice = self.options.on_refused
                if choice == "stop" or (choice == "older" and snapshot is self.found[-1]):
                    for words in refused[:-1]:
                        _tell(words)
                    raise
            else:
                self.directory.log(f"woke snapshot {snapshot.id}")
                for words in refused:  # not before: the output has been cut to where this snapshot had it
                    _tell(words)
                return job
        for words in (*refused, "the application begins anew (--on-refused=anew)"):
            _tell(words)
        return None

    def _wake_one(self, snapshot: Snapshot) -> Job:
        def last_moment() -> None:
            # All is built and nothing runs: from here on the restore cannot be refused, and output may be cut.
            if self.directory.is_fenced(self.allocation.restarts):
                later = Reason(f"job {self.directory.job}", "a later run of it has begun", "that one goes on")
                raise Refused("this run is not woken", [later])
            if self.options.rollback_files == "append-only":
                for tail in rollback.tails(tree):
                    aside = rollback.cut(tail, self.directory.cut, f"run{self.allocation.restarts}")
                    self.directory.log(f"cut {tail.path} from {tail.end} to {tail.begin} bytes; the rest is in {aside}")

        with self.directory.store.open(snapshot) as reader:
            tree = image.read(reader)
        return torpor.restore(
            snapshot,
            first=lambda _: False,
            connected=last_moment,
            files=self.directory.requested_files(self.allocation.restarts) or self.options.files,
            series=self.series,
        )

    # ------------------------------------------------------------------------------------------- leaving

    def _warned(self, number: signal.Signals | None) -> int | None:
        """Find out why, and act on it: the exit code if the job is to leave, None if it goes on."""
        self.warned = self.warned or number == signal.SIGTERM
        heard = f"heard {number.name}" if number else "the sentinel heard the start of a grace time"
        answer = self._find_cause(number)
        if answer is None:  # no controller: whatever comes, nothing is lost
            self._save("run")
            return None
        self.directory.log(f"{heard}: {answer.cause.value}")
        if answer.cause is Cause.OTHER:
            if number is not None:
                self._hand_on(number)
            return None
        return self._leave(answer, number)

    def _warned_before(self) -> int | None:
        """Look whether the grace time began before anybody listened; the exit code if the job is to leave."""
        answer = self._find_cause(None)
        if answer is None or answer.cause not in (Cause.PREEMPTED, Cause.REQUEUED):
            return None
        self.directory.log(f"a warning came before it was listened for: {answer.cause.value}")
        return self._leave(answer)

    def _find_cause(self, number: signal.Signals | None) -> Finding | None:
        try:
            self.record = controller.job_record(self.directory.job)
        except SlurmError as error:
            self.directory.log(f"warned, but Slurm does not say why: {error}")
            return None
        return find_cause(
            self.record,
            restarts=self.allocation.restarts,
            now=time.time(),
            lead=self._lead(),
            terminated=number in (None, signal.SIGTERM),
            deadline=self.leaving.deadline if self.leaving else None,
        )

    def _leave(self, answer: Finding, number: int | None = None) -> int | None:
        """Save everything, requeue if need be, and give the exit code; None when saving failed."""
        began = time.monotonic()
        self.leaving = answer
        if not self._save("kill"):
            self.retry_at = time.monotonic() + RETRY
            if number is not None:  # the end of the grace time, or of the job: the application may do what it can
                self._hand_on(number)
            return None
        self.job.wait()
        saved = time.monotonic() - began
        timed_out = answer.cause is Cause.TIME_LIMIT
        if answer.cause is Cause.PREEMPTED or (timed_out and self.options.on_timeout == "requeue"):
            self._requeue(answer.deadline)
        took = time.monotonic() - began
        self.directory.log(f"left because of {answer.cause.value}: saved in {saved:.2f} s, gone after {took:.2f} s")
        self._update_state(phase="left", cause=answer.cause.value, leave_seconds=took)
        if timed_out and self.options.on_timeout == "stop":
            _tell(f"saved at the time limit; `scontrol requeue {self.directory.job}` lets it go on")
            return LEFT_AT_TIME_LIMIT
        return 0

    def _requeue(self, deadline: float | None) -> None:
        """Ask for another run, until a controller answers: to leave without one would end the job.

        Raises:
            SlurmError: it was not granted; with what the user can do.
        """
        while not self.directory.is_fenced(self.allocation.restarts):
            try:
                refusal = self._ask_for_another_run(deadline)
            except SlurmError as error:
                self.directory.log(f"not requeued yet: {error}")
                time.sleep(RETRY)
                continue
            if refusal is not None:
                raise refusal
            return

    def _ask_for_another_run(self, deadline: float | None) -> SlurmError | None:
        """Ask once, unless there is one already or the user has cancelled the job meanwhile.

        Returns:
            Why the controller does not grant it.

        Raises:
            SlurmError: no controller answers.
        """
        record = controller.job_record(self.directory.job)
        if is_cancelled(record, deadline):
            self.directory.log("not requeued: it was cancelled meanwhile")
        elif record.restarts <= self.allocation.restarts:
            try:
                controller.requeue(self.directory.job)
            except SlurmError as refusal:
                if controller.job_record(self.directory.job).restarts <= self.allocation.restarts:
                    way = f"`torpor restore latest --store {self.directory.path}` lets it go on anywhere"
                    refusal.advice = f"the job is saved: {way}"
                    return refusal
        return None

    def _time_is_up(self) -> bool:
        """Whether the time limit is near; before leaving, ask whether it was extended."""
        record = self.record
        if self.leaving is not None or not record.limited or record.end is None:
            return False
        if record.end - time.time() > self._lead():
            return False
        try:
            self.record = controller.job_record(self.directory.job)
        except SlurmError as error:
            self.directory.log(f"the time limit is near, and Slurm does not say whether it holds: {error}")
        return self.record.end is not None and self.record.end - time.time() <= self._lead()

    def _lead(self) -> float:
        """How long before its time limit the job leaves: twice what a save takes, at most half of its time."""
        need = LEAST_LEAD + 2 * processes.resident(self.job.tree_pid) / self.rate
        if self.record.start is None or self.record.end is None:
            return need
        return min(need, (self.record.end - self.record.start) / 2)

    def _abandon(self) -> int:
        """A later run exists: this one is a copy on a node that was thought dead."""
        self.directory.log(f"run {self.allocation.restarts} on {self.allocation.node} found a later one: it ends")
        with suppress(ProcessLookupError):
            self.job.send_signal(signal.SIGKILL)
        self.job.wait()
        return FENCED

    # ------------------------------------------------------------------------------------------- saving

    def _save(self, then: Literal["run", "kill"]) -> bool:
        """Take a snapshot; False, and said why, when that failed: the application runs on."""
        began = time.monotonic()
        stats = torpor.Stats()
        try:
            srun_wrapper.refuse_real_srun(self.job.tree_pid)
            snapshot = torpor.checkpoint(
                self.job.tree_pid,
                store=self.directory.store,
                then=then,
                tags={RUN_TAG: str(self.allocation.restarts), "slurm-job": self.directory.job},
                series=self.series,
                stats=stats,
            )
        except NotFound:
            return False  # the application has just ended: the next look at it says how
        except Exception as error:  # also a fault of ours: it must not cost the job, which runs on
            words = str(error) if isinstance(error, TorporError) else "".join(traceback.format_exception(error))
            self.directory.log(f"not saved: {words}")
            # Of one that has ended meanwhile, or is about to, anything may be said.
            if not processes.is_ending(self.job.tree_pid):
                _tell(f"not saved: {words}")
            return False
        took = time.monotonic() - began
        rate = max(1.0, snapshot.size / took)
        # A save that found little written tells how slow one is, but not how fast.
        self.rate = rate if snapshot.written > snapshot.size / 2 else min(rate, self.rate)
        try:
            self.directory.prune(self.allocation.restarts, self.found)
            pause = stats.pause_ns / 1e9
            self._update_state(saved=time.time(), save_seconds=took, bytes=snapshot.size, pause_seconds=pause)
        except TorporError as error:
            self.directory.log(f"saved, but afterwards: {error}")
        self.directory.log(f"saved {snapshot.id}, {snapshot.size} bytes in {took:.2f} s")
        for notice in snapshot.notices:
            if notice not in self.told:
                self.told.add(notice)
                self.directory.log(f"a wake will not bring back all: {notice}")
                _tell(f"saved, but {notice}")
        return True

    def _update_state(self, **news: Any) -> None:
        """Keep what `torpor slurm status` shows; where that cannot be, the job goes on all the same."""
        try:
            self.directory.update_state(**news)
        except TorporError as error:
            self.directory.log(f"the state was not kept: {error}")

    # ------------------------------------------------------------------------------------------- the end

    def _ended(self, code: int) -> int:
        """The application has ended: by itself, or because Slurm ended it while it was to be saved."""
        if self.directory.is_fenced(self.allocation.restarts):
            return self._abandon()  # what became of this copy says nothing of the job
        if code != 0 and (self.warned or self.leaving or code in (-signal.SIGTERM, -signal.SIGKILL)):
            answer = self._find_cause(signal.SIGTERM)
            killed = code == -signal.SIGKILL  # for want of memory, or by hand: it has not come to its end
            if killed or answer is None or answer.cause is not Cause.OTHER or self.record.state != "RUNNING":
                return self._ended_early(code, answer)
        self.directory.log(f"the application ended with {code}")
        self._update_state(phase="finished", code=code)
        try:
            self.directory.finish(self.allocation.restarts, code)
        except TorporError as error:  # the application's exit code is what counts
            _tell(f"the application ended with {code}, but that cannot be kept: {error}")
        return code

    def _ended_early(self, code: int, answer: Finding | None) -> int:
        """Slurm, or the user by scancel, ended the application: it is not done."""
        cause = answer.cause.value if answer else "a cause that Slurm does not tell"
        self.directory.log(f"the application was ended ({code}) because of {cause}")
        self._update_state(phase="ended", cause=cause)
        if answer and answer.cause is Cause.PREEMPTED:
            self._requeue(answer.deadline)
        return code

    def _hand_on(self, number: int) -> None:
        if number not in self.given.ignored:
            with suppress(ProcessLookupError):
                self.job.send_signal(number)
