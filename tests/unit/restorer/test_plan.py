"""Plans, made without any privilege: what comes when, and what is said of it."""

from __future__ import annotations

import signal
from array import array
from collections.abc import Sequence
from dataclasses import replace

import pytest

from torpor.arch.x86_64 import MIN_XSAVE, NR, REGISTER_COUNT
from torpor.errors import RestoreFailed
from torpor.image import image_pb2 as pb
from torpor.objects.process import birth_order, seccomp
from torpor.objects.process.process_attributes import PR_SET_DUMPABLE, OomScores
from torpor.objects.process.threads import PR_SET_PDEATHSIG
from torpor.objects.process.timers import Timers
from torpor.objects.registry import FILES, PROCESS_PARTS
from torpor.remote.batch import Call
from torpor.restorer import surroundings
from torpor.restorer.capsule import Namespaces, Setting
from torpor.restorer.plan import Here, Plan, RestorerFds, make
from torpor.store import BlockTable

ROOT, CHILD = 5000, 5001


def tree(pids: Sequence[int] = (ROOT, CHILD)) -> pb.Tree:
    """A process and its children, each with two threads and nothing else."""
    image = pb.Tree()
    image.files.add(path=b"/bin/true")
    for pid in pids:
        process = image.processes.add(pid=pid, ppid=0 if pid == ROOT else ROOT, pgid=ROOT, sid=ROOT, cwd=b"/")
        process.credentials.uids.extend([1000] * 4)
        process.credentials.gids.extend([1000] * 4)
        process.memory.SetInParent()
        for tid in (pid, pid + 1000):
            registers = array("Q", [0] * REGISTER_COUNT).tobytes()
            process.threads.add(tid=tid, name=b"name", registers=registers, xstate=bytes(MIN_XSAVE))
    return image


@pytest.fixture(scope="module")
def here() -> Here:
    """A capsule on this host."""
    return surroundings.here(Setting(Namespaces.PID | Namespaces.USER | Namespaces.MOUNT))


def plan(image: pb.Tree, here: Here) -> Plan:
    return make(image, here, RestorerFds.imagined(image, BlockTable()))


def numbers(calls: Sequence[Call]) -> list[int]:
    return [call.nr for call in calls]


def test_parents_come_first_and_bear_their_children(here: Here) -> None:
    made = plan(tree(), here)
    assert [process.member.pid for process in made.processes][-2:] == [ROOT, CHILD]
    births = [call.expect for call in made.processes[-2].birth if call.nr == NR.clone3]
    assert births == [CHILD]


def test_threads_are_made_when_the_memory_is_there_and_every_one_has_calls(here: Here) -> None:
    root = plan(tree(), here).processes[-2]
    assert root.build[-1].nr == NR.clone3
    assert root.build[-1].expect == ROOT + 1000
    assert [thread.image.tid for thread in root.threads] == [ROOT, ROOT + 1000]
    assert all(NR.set_tid_address in numbers(thread.calls) for thread in root.threads)


def test_on_a_walk_a_thread_is_born_when_its_number_comes(here: Here) -> None:
    root = plan(tree(), replace(here, walk=True)).processes[-2]
    assert [call.expect for call in root.clones] == [ROOT + 1000]
    assert NR.clone3 not in numbers(root.build)


def test_what_credentials_undo_comes_after_them(here: Here) -> None:
    image = tree()
    image.processes[0].threads[1].pdeath_signal = signal.SIGTERM
    main, other = plan(image, here).processes[-2].threads
    for thread in (main, other):
        credentials = numbers(thread.calls).index(NR.capset)
        late = [call.args[0] for call in thread.calls[credentials:] if call.nr == NR.prctl]
        assert PR_SET_DUMPABLE in late
        assert (PR_SET_PDEATHSIG in late) == (thread is other)


def test_only_the_first_thread_makes_what_is_the_processs_own(here: Here) -> None:
    image = tree()
    image.processes[0].actions.add(signal=signal.SIGUSR1, handler=signal.SIG_IGN)
    image.processes[0].interval_timers.add(which=0, value_us=1)
    image.processes[0].pending.append(int(signal.SIGUSR2).to_bytes(4, "little") + bytes(124))
    main, other = plan(image, here).processes[-2].threads
    own = [NR.rt_sigaction, NR.setitimer, NR.rt_sigqueueinfo]
    assert [number for number in numbers(main.calls) if number in own] == [own[0], *own]  # SIGCHLD is forgotten first
    assert not set(own) & set(numbers(other.calls))


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGTRAP])
def test_signals_of_the_processor_come_when_no_int3_is_to_come(here: Here, number: int) -> None:
    image = tree()
    image.processes[0].threads[1].pending.append(int(number).to_bytes(4, "little") + bytes(124))
    _, other = plan(image, here).processes[-2].threads
    assert NR.rt_tgsigqueueinfo not in numbers(other.calls)
    assert numbers(other.last) == [NR.rt_tgsigqueueinfo]


def test_a_stop_is_sent_by_nobody_in_the_tree(here: Here) -> None:
    image = tree()
    image.processes[0].pending.append(int(signal.SIGSTOP).to_bytes(4, "little") + bytes(124))
    main, _ = plan(image, here).processes[-2].threads
    assert NR.rt_sigqueueinfo not in numbers([*main.calls, *main.last])


def test_what_cannot_be_given_back_is_told_by_process_and_thread(here: Here) -> None:
    image = tree()
    image.processes[1].oom_score_adj = -500
    image.processes[1].threads[1].affinity.append(5000)
    warnings = plan(image, replace(here, hosts={**here.hosts, FILES: OomScores(0, may_lower=False)})).warnings
    assert any(line.startswith(f"process {CHILD} (name): its oom_score_adj is 0") for line in warnings)
    assert any(line.startswith(f"process {CHILD} (name), thread {CHILD + 1000}: none of the proc") for line in warnings)


def test_a_kernel_that_takes_no_wish_counts_up_to_the_id_of_a_timer(here: Here) -> None:
    (timers,) = (part for part in PROCESS_PARTS if isinstance(part, Timers))
    old = replace(here, hosts={**here.hosts, timers: False})
    image = tree()
    image.processes[0].posix_timers.add(id=2, clock=1)
    calls = plan(image, old).processes[-2].threads[0].calls
    assert numbers(calls).count(NR.timer_create) == 3
    assert numbers(calls).count(NR.timer_delete) == 2
    image.processes[0].posix_timers[0].id = 1 << 20
    with pytest.raises(RestoreFailed, match="the kernel cannot give a timer the id"):
        plan(image, old)


def test_filters_of_all_threads_are_looked_for_once_in_a_process(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look goes through all threads: one for each of them takes minutes where there are thousands."""
    looks: list[int] = []
    common = seccomp.common

    def looked(process: pb.Process) -> list[int]:
        looks.append(process.pid)
        return common(process)

    monkeypatch.setattr(seccomp, "common", looked)
    image = tree()
    image.filters.add(code=bytes(8))
    image.filters.add(code=bytes(16))
    for thread, filters in zip(image.processes[0].threads, ([0, 1], [0]), strict=True):
        thread.filters.extend(filters)
    root = plan(image, here).processes[-2]
    assert looks == [ROOT, CHILD]
    assert numbers(root.build).count(NR.seccomp) == 1
    assert [numbers(thread.calls).count(NR.seccomp) for thread in root.threads] == [1, 0]
    own = numbers(root.threads[0].calls)
    assert own.index(NR.set_tid_address) < own.index(NR.seccomp) < own.index(NR.capset)


def test_a_plan_can_be_read(here: Here) -> None:
    told = plan(tree(), here).explain()
    assert f"process {ROOT} (name):" in told
    assert f"    clone3             starting process {CHILD}" in told
    assert f"thread {CHILD + 1000}:" in told


def test_a_newline_in_a_name_makes_no_line_of_a_plan(here: Here) -> None:
    image = tree()
    lines = len(plan(image, here).explain().splitlines())
    image.processes[0].threads[0].name = b"na\nme"
    told = plan(image, here).explain().splitlines()
    assert len(told) == lines
    assert f"process {ROOT} (na\\nme):" in told


def test_a_zombie_ends_as_it_did(here: Here) -> None:
    image = tree()
    image.processes.add(pid=7000, ppid=ROOT, pgid=ROOT, sid=ROOT, zombie=True, exit_status=3 << 8).threads.add(
        tid=7000, name=b"gone"
    )
    gone = next(one for one in plan(image, here).processes if one.member.pid == 7000)
    assert gone.end[-1].nr == NR.exit_group
    assert gone.end[-1].args == (3,)
    assert not gone.threads


def test_pids_of_init_are_known(here: Here) -> None:
    assert here.init == 1
    assert surroundings.here(Setting(Namespaces(0))).init == birth_order.UNKNOWN_PID
