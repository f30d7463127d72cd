"""`torpor prune`: what says what to keep, and what is said of the rest."""

from __future__ import annotations

from pathlib import Path

from tests.unit.cli.conftest import Torpor
from tests.unit.cli.test_cli_store import save
from torpor.store import Store


def test_what_no_option_says_the_configuration_does(run: Torpor, store: Store, configured: Path) -> None:
    configured.write_text("[prune]\nkeep-last = 2\n")
    infos = [save(store, name) for name in "abc"]
    assert f"would remove {infos[0].id}" in run("prune", "--dry-run")[1]
    assert store.ids() == [info.id for info in infos]
    assert run("prune", "--keep-last", "1")[0] == 0, "an option is above the file"
    assert store.ids() == [infos[2].id]


def test_a_wrong_configuration_removes_nothing(run: Torpor, store: Store, configured: Path) -> None:
    configured.write_text("[prune]\nkeep-last = -1\n")
    info = save(store)
    code, out, err = run("prune")
    assert (code != 0, out, "keep-last" in err) == (True, "", True)
    assert store.ids() == [info.id]


def test_a_number_below_zero_removes_nothing(run: Torpor, store: Store) -> None:
    info = save(store)
    assert run("prune", "--keep-last", "-1")[0] == 2
    assert store.ids() == [info.id]


def test_what_a_dead_writer_left_is_named(run: Torpor, store: Store) -> None:
    info = save(store)
    left = Path(store.path, "packs", f"{info.id}.tmp")
    left.write_bytes(bytes(100))
    words = f"packs/{left.name}, left by an interrupted save"
    assert f"would remove {words}\n" in run("prune", "--keep-last", "1", "--dry-run")[1]
    assert left.exists()
    assert f"removed {words}\n" in run("prune", "--keep-last", "1")[1]
    assert not left.exists()


def test_why_data_stays_is_said(run: Torpor, store: Store) -> None:
    """A manifest that cannot be read may name any pack."""
    save(store, "a")
    damaged = save(store, "b")
    manifest = Path(store.path, "snapshots", damaged.id, "manifest")
    manifest.chmod(0o600)
    manifest.write_bytes(b"nothing")
    code, _, err = run("prune", "--keep-last", "0")
    assert code == 0
    assert err.startswith(f"some data stays: no pack was removed: the manifest of {damaged.id} cannot be read")
