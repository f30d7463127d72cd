"""What is known of a kernel's checkpoints: told whole, kept with them, and a tree when some are deleted."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from tests.unit.jupyter.conftest import Server
from torpor.errors import NotFound
from torpor_jupyter.data.records import CheckpointRecord, KernelRecord
from torpor_jupyter.kernels.quiescing import PORTS
from torpor_jupyter.kernels.state import Unsuitable


def record_of(server: Server, id: str) -> CheckpointRecord:
    return server.service.registry.records.read(CheckpointRecord, id)


def test_a_checkpoint_is_found_by_its_own_kernel_only(server: Server) -> None:
    checkpoints, kernel, other = server.service.checkpoints, server.record(), server.record()
    id = server.checkpoint(kernel, name="mine")
    info, record = asyncio.run(checkpoints.find(kernel.id, id))
    assert (info.id, record.name) == (id, "mine")
    for asked in ((other.id, id), (kernel.id, "20260101-000000000-aaaaaa"), (kernel.id, "../x")):
        with pytest.raises(NotFound):
            asyncio.run(checkpoints.find(*asked))


def test_a_list_has_one_kernels_or_all(server: Server) -> None:
    one, two = server.record(), server.record()
    made = [server.checkpoint(kernel) for kernel in (one, two, one)]
    listed = server.service.checkpoints.list
    assert [told["id"] for told in asyncio.run(listed(one.id))] == [made[0], made[2]]
    assert [told["id"] for told in asyncio.run(listed())] == made


def test_what_is_told_when_the_record_is_gone(server: Server) -> None:
    kernel = server.record()
    id = server.checkpoint(kernel)
    server.service.registry.records.remove(CheckpointRecord, id)
    (told,) = asyncio.run(server.service.checkpoints.list())
    assert (told["id"], told["kernel_id"]) == (id, kernel.id)
    assert told["damage"], "it is not passed over, and it is said that something is wrong"


def test_only_clients_who_do_not_come_back_by_themselves_are_told_of(server: Server) -> None:
    kernel = server.record()
    id = server.checkpoint(kernel)
    info, _ = asyncio.run(server.service.checkpoints.find(kernel.id, id))
    own = ", ".join(str(kernel.connection[name]) for name in PORTS)
    words = "TCP connections that others made will be seen reset, at port"
    notices = (f"{words} {own}", f"{words} {own}, 8888", "a FIFO will have lost its reader")
    assert server.service.checkpoints.describe(replace(info, notices=notices))["notices"] == list(notices[1:])


def test_when_there_is_no_room_for_a_record_the_checkpoint_is_known_all_the_same(server: Server) -> None:
    checkpoints, records, kernel = server.service.checkpoints, server.service.registry.records, server.record()
    id = server.checkpoint(kernel)
    records.remove(CheckpointRecord, id)
    blocked = records.folder / "checkpoints" / f"{id}.json"
    blocked.mkdir()
    checkpoints.add(CheckpointRecord(id, kernel.id, "python3", kernel.connection, "/", name="full"), "{}", "")
    assert asyncio.run(checkpoints.list())[0]["name"] == "full"
    assert checkpoints.notebooks.kept(id) == "{}"
    blocked.rmdir()
    asyncio.run(checkpoints.change(kernel.id, id, note="room again"))
    assert (record_of(server, id).name, record_of(server, id).note) == ("full", "room again")


def test_a_name_that_a_person_gives_replaces_the_reason(server: Server) -> None:
    kernel = server.record()
    id = server.checkpoint(kernel, reason="idle", note="old")
    told = asyncio.run(server.service.checkpoints.change(kernel.id, id, name="mine"))
    assert (told["name"], told["reason"], told["note"]) == ("mine", "", "old")
    assert record_of(server, id).name == "mine"
    assert server.events == ["changed"]


def test_a_pin_holds_against_prune_and_so_does_a_parked_kernel(server: Server) -> None:
    change, kernel = server.service.checkpoints.change, server.record()
    id = server.checkpoint(kernel)
    asyncio.run(change(kernel.id, id, pinned=True))
    assert server.pinned() == {id}
    asyncio.run(change(kernel.id, id, pinned=False))
    assert server.pinned() == set()
    kernel.snapshot = id
    server.service.registry.records.write(kernel)
    asyncio.run(change(kernel.id, id, pinned=False))
    assert server.pinned() == {id}, "the kernel is in it"


def test_what_is_deleted_leaves_its_children_to_its_parent(server: Server) -> None:
    checkpoints, kernel = server.service.checkpoints, server.record()
    first = server.checkpoint(kernel)
    middle = server.checkpoint(kernel, parent=first)
    last = server.checkpoint(kernel, parent=middle)
    checkpoints.variables.keep(middle, "[]")
    checkpoints.notebooks.keep(middle, "{}")
    asyncio.run(checkpoints.delete(kernel.id, middle))
    assert [told["id"] for told in asyncio.run(checkpoints.list())] == [first, last]
    assert record_of(server, last).parent == first
    assert (checkpoints.variables.kept(middle), checkpoints.notebooks.kept(middle)) == ("", "")
    assert server.events == ["deleted"]


def test_what_is_pinned_or_parked_in_is_not_deleted(server: Server) -> None:
    checkpoints, kernel = server.service.checkpoints, server.record()
    pinned, parked = server.checkpoint(kernel, pinned=True), server.checkpoint(kernel)
    kernel.snapshot = parked
    server.service.registry.records.write(kernel)
    for id, why in ((pinned, "is pinned"), (parked, "is parked in")):
        with pytest.raises(Unsuitable, match=why):
            asyncio.run(checkpoints.delete(kernel.id, id))
    assert len(asyncio.run(checkpoints.list())) == 2
    assert server.service.registry.records.read(KernelRecord, kernel.id).snapshot == parked


def test_the_first_checkpoint_has_nothing_to_be_compared_with(server: Server) -> None:
    kernel = server.record()
    id = server.checkpoint(kernel)
    with pytest.raises(NotFound, match="the kernel's first"):
        asyncio.run(server.service.checkpoints.diff(kernel.id, id))


def test_a_server_reads_what_another_one_has_written(server: Server) -> None:
    kernel = server.record()
    id = server.checkpoint(kernel, name="mine")
    path = server.service.registry.records.folder / "checkpoints" / f"{id}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"of the future": 1}))
    (told,) = asyncio.run(server.service.checkpoints.list())
    assert told["damage"] and told["name"] == "", "what is not known is not guessed at"
