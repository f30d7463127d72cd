"""`torpor verify`: what is asked for, and how what is damaged is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Torpor
from tests.unit.cli.test_cli_store import save
from torpor.cli import verify
from torpor.errors import ImageDamaged, Reason
from torpor.store import Store


def test_its_exit_code_is_that_of_a_damaged_image() -> None:
    assert ImageDamaged("").exit_code == verify.DAMAGED


@pytest.mark.parametrize("words", [[], ["latest", "--all"]])
def test_one_snapshot_or_all(run: Torpor, store: Store, words: list[str]) -> None:
    save(store)
    code, out, err = run("verify", *words)
    assert (code, out) == (2, "")
    assert "name one snapshot, or use --all" in err


def test_a_pack_that_is_gone_is_damage(run: Torpor, store: Store) -> None:
    infos = [save(store, content=bytes([number]) * 4096) for number in (1, 2)]
    Path(store.path, "packs", f"{infos[0].id}.pack").unlink()
    assert run("verify", infos[1].id) == (0, "sound\n", "")
    code, out, err = run("verify", "--all")
    assert (code, out) == (31, "")
    assert infos[0].id in err and infos[1].id not in err


def test_every_problem_is_a_line_that_is_safe_to_print(
    run: Torpor, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store)
    problems = [Reason("block 1", "\x1b[2Jit is gone", "save it again"), Reason("block 2", "it is gone")]
    monkeypatch.setattr(Store, "verify", lambda *_: problems)
    code, out, err = run("verify", "--all")
    assert (code, out) == (31, "")
    assert err == "torpor: block 1: \\x1b[2Jit is gone; save it again\ntorpor: block 2: it is gone\n"
    told = json.loads(run("verify", "--all", "--json")[1])
    assert (told["sound"], [one["advice"] for one in told["problems"]]) == (False, ["save it again", ""])


def test_an_interrupt_does_not_say_that_all_is_sound(
    run: Torpor, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "verify", interrupted)
    code, out, err = run("verify", "--all")
    assert (code, out) == (130, "")
    assert "not everything was read" in err
