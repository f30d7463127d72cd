"""Credentials: an image grants nothing that the restorer does not have."""

from __future__ import annotations

import os
import struct

import pytest

from tests.unit.objects.process.inside import described
from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.image import image_pb2 as pb
from torpor.objects.process.credentials import (
    PR_CAP_AMBIENT,
    PR_CAPBSET_DROP,
    PR_SET_KEEPCAPS,
    PR_SET_SECUREBITS,
    SECBIT_KEEP_CAPS,
    Ids,
    Rights,
    set_credentials,
)
from torpor.remote.batch import Call

IDS = Ids()
ROOT = Rights(keep=True, last_capability=40, capabilities=(1 << 41) - 1)
CHOWN, KILL, SETPCAP = 1 << 0, 1 << 5, 1 << 8


def credentials(**changes: int | list[int]) -> pb.Credentials:
    usual: dict[str, int | list[int]] = {
        "uids": [1, 2, 3, 4], "gids": [5, 6, 7, 8], "groups": [9, 10], "cap_bounding": (1 << 41) - 1,
    }  # fmt: skip
    return pb.Credentials(**usual | changes)  # type: ignore[arg-type]


def capabilities(call: Call) -> tuple[int, int, int]:
    """Effective, permitted and inheritable ones that a capset(2) sets."""
    content = call.args[1]
    assert call.nr == NR.capset and isinstance(content, bytes)
    low = struct.unpack("<6I", content)
    return low[0] | low[3] << 32, low[1] | low[4] << 32, low[2] | low[5] << 32


def last_capabilities(calls: list[Call]) -> tuple[int, int, int]:
    return capabilities([call for call in calls if call.nr == NR.capset][-1])


def test_they_are_read_from_proc() -> None:
    found = described(IDS, lambda: None).credentials
    assert tuple(found.uids[:3]) == os.getresuid() and tuple(found.gids[:3]) == os.getresgid()
    assert list(found.groups) == os.getgroups()
    assert found.cap_effective == int(procfs.status(procfs.read("/proc/self/status"))[b"CapEff"], 16)


def test_without_root_a_thread_only_gives_up_capabilities() -> None:
    image = credentials(cap_permitted=KILL, cap_effective=KILL, cap_ambient=KILL)
    rights = Rights(keep=False, last_capability=40, capabilities=ROOT.capabilities)
    calls = list(set_credentials(image, pb.Thread(), rights))
    assert [call.nr for call in calls] == [NR.capset] and capabilities(calls[0]) == (0, 0, 0)
    calls = list(set_credentials(image, pb.Thread(securebits=1 + SECBIT_KEEP_CAPS), rights))
    assert calls[-1].args[:2] == (PR_SET_KEEPCAPS, 1)


def test_root_sets_groups_before_ids_and_capabilities_last() -> None:
    image = credentials(cap_permitted=CHOWN | KILL, cap_effective=KILL, cap_inheritable=KILL, cap_ambient=KILL)
    calls = list(set_credentials(image, pb.Thread(), ROOT))
    order = [call.nr for call in calls if call.nr not in (NR.prctl, NR.capset)]
    assert order == [NR.setgroups, NR.setresgid, NR.setfsgid, NR.setresuid, NR.setfsuid]
    by_number = {call.nr: call.args for call in calls}
    assert by_number[NR.setgroups] == (2, struct.pack("<2I", 9, 10))
    assert by_number[NR.setresuid] == (1, 2, 3) and by_number[NR.setfsuid] == (4,)
    assert last_capabilities(calls) == (KILL, CHOWN | KILL, KILL)
    assert calls[-1].args[0] == PR_CAP_AMBIENT and calls[-1].args[2] == 5
    assert not [call for call in calls if call.nr == NR.prctl and call.args[0] == PR_CAPBSET_DROP]


def test_a_capability_that_the_restorer_lacks_is_not_given() -> None:
    image = credentials(
        cap_permitted=CHOWN | KILL, cap_effective=CHOWN | KILL, cap_inheritable=CHOWN, cap_ambient=CHOWN
    )
    rights = Rights(keep=True, last_capability=40, capabilities=KILL | SETPCAP)
    calls = list(set_credentials(image, pb.Thread(), rights))
    assert last_capabilities(calls) == (KILL, KILL, 0)
    assert not [call for call in calls if call.nr == NR.prctl and call.args[0] == PR_CAP_AMBIENT]


def test_what_is_not_in_the_bounding_set_is_dropped_after_it_was_made_inheritable() -> None:
    image = credentials(cap_bounding=ROOT.capabilities & ~KILL, cap_inheritable=KILL)
    calls = list(set_credentials(image, pb.Thread(), ROOT))
    assert calls[0].nr == NR.capset and capabilities(calls[0])[2] == KILL
    dropped = [call.args[1] for call in calls if call.nr == NR.prctl and call.args[0] == PR_CAPBSET_DROP]
    assert dropped == [5]


def test_securebits_are_the_threads_own_and_set_while_it_may() -> None:
    calls = list(set_credentials(credentials(securebits=1), pb.Thread(securebits=1 + 4), ROOT))
    at = next(number for number, call in enumerate(calls) if call.args[0] == PR_SET_SECUREBITS)
    assert calls[at].args[1] == 4
    assert capabilities(calls[at - 1])[0] == ROOT.capabilities and last_capabilities(calls) == (0, 0, 0)


def test_who_is_not_root_restores_only_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procfs, "is_root", lambda: False)
    mine = pb.Process(credentials=credentials(uids=[os.geteuid()] * 4, gids=[os.getegid()] * 4))
    assert list(IDS.validate("it", mine)) == [] == list(IDS.validate_form(mine))
    others = pb.Process(credentials=credentials(uids=[os.geteuid()] * 3 + [4711], gids=[4711] * 4))
    whys = [reason.why for reason in IDS.validate("it", others)]
    assert "4711" in whys[0] and "user ids" in whys[0] and "group ids 4711" in whys[1]
    monkeypatch.setattr(procfs, "is_root", lambda: True)
    assert list(IDS.validate("it", others)) == []
    assert list(IDS.validate_form(pb.Process(credentials=credentials(uids=[1, 2, 3]))))


def test_a_tree_of_another_user_is_refused_before_the_freeze(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procfs, "is_root", lambda: False)
    (told,) = IDS.preflight(1, {b"Uid": b"4711\t4711\t4711\t4711"})
    assert "4711" in told[0]
    assert list(IDS.preflight(1, {b"Uid": b"%d " % os.geteuid() * 4})) == []
