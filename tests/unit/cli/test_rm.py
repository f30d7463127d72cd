"""`torpor rm`: all or nothing of what it names, and what is said of the rest."""

from __future__ import annotations

import json

import pytest

from tests.unit.cli.conftest import Torpor
from tests.unit.cli.test_cli_store import save
from torpor.store import PruneReport, Store


def test_none_is_removed_if_one_is_pinned(run: Torpor, store: Store) -> None:
    infos = [save(store, name) for name in "abc"]
    for info in infos[1:]:
        store.pin(info.id)
    code, out, err = run("rm", *(info.id for info in infos))
    assert (code, out) == (10, "")
    assert err.startswith("torpor: nothing was removed:\n")
    assert [info.id in err for info in infos] == [False, True, True]
    told = json.loads(run("rm", infos[0].id, infos[1].id, "--json")[1])["error"]
    assert [reason["subject"] for reason in told["reasons"]] == [f"snapshot {infos[1].id} (b)"]
    assert store.ids() == [info.id for info in infos]
    assert run("rm", "--force", *(info.id for info in infos))[0] == 0
    assert not store.ids()


def test_a_snapshot_that_is_named_twice_is_removed_once(run: Torpor, store: Store) -> None:
    info = save(store)
    assert run("rm", "latest", info.id, info.short)[1].count("removed ") == 1


def test_what_several_removals_did_is_one_report(run: Torpor, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    infos = [save(store, name) for name in "ab"]

    def remove(self: Store, id: str, *, force: bool) -> PruneReport:
        (info,) = (one for one in infos if one.id == id)
        return PruneReport((info,), (f"pack-{info.summary}",), ("shrunk",), freed=5, kept="a restore reads it")

    monkeypatch.setattr(Store, "remove", remove)
    told = json.loads(run("rm", *(info.id for info in infos), "--json")[1])
    assert [info["id"] for info in told["snapshots"]] == [info.id for info in infos]
    assert (told["packs"], told["shrunk"], told["freed"]) == (["pack-a", "pack-b"], ["shrunk"], 10)
    assert told["kept"] == "a restore reads it"
    _, out, err = run("rm", infos[0].id)
    assert out == f"removed {infos[0].id}, 5 B freed\n"
    assert err == "some of its data stays until `torpor prune` can remove it: a restore reads it\n"


def test_an_interrupt_says_how_many_are_gone(run: Torpor, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    infos = [save(store, name) for name in "ab"]
    remove = Store.remove

    def interrupted(self: Store, id: str, *, force: bool) -> PruneReport:
        if id == infos[1].id:
            raise KeyboardInterrupt
        return remove(self, id, force=force)

    monkeypatch.setattr(Store, "remove", interrupted)
    code, out, err = run("rm", *(info.id for info in infos))
    assert (code, out.count("removed ")) == (130, 1)
    assert "1 of 2 were removed before; the others are whole" in err
