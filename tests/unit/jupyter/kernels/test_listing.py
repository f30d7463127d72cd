"""What a kernel says of its variables: run as it is run there, in a shell of IPython."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell

from torpor_jupyter.kernels import forks

LISTING = forks.__file__.replace("forks", "listing")
List = Callable[..., dict[str, list[Any]]]


class Trap:
    """Whoever asks anything of it is caught."""

    def __repr__(self) -> str:
        raise AssertionError

    def __getattr__(self, name: str) -> object:
        raise AssertionError(name)

    __len__ = __eq__ = __hash__ = __repr__  # type: ignore[assignment]


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> Iterator[List]:
    """Lists variables: type, summary, fingerprint and places of each, by its name."""
    shell = InteractiveShell.instance(history_length=0)
    shell.history_manager.enabled = False  # type: ignore[union-attr]

    def call(**variables: Any) -> dict[str, list[Any]]:
        shell.user_ns |= variables
        _, found = json.loads(runpy.run_path(LISTING)["answer"])
        return {name: rest for name, *rest in found}

    yield call
    InteractiveShell.clear_instance()


def test_what_is_known_is_told_in_words(listed: List) -> None:
    found = listed(n=7, big=1 << 1000, text="x" * 100, some=[1, 2], mapping={}, nothing=None, function=listed)
    told = {name: (kind, summary) for name, (kind, summary, *_) in found.items()}
    assert told == {
        "n": ("int", "7"),
        "big": ("int", "1001 bits"),
        "text": ("str", "'" + "x" * 60 + "' … (100)"),
        "some": ("list", "2 items"),
        "mapping": ("dict", "0 items"),
        "nothing": ("NoneType", "None"),
        "function": ("function", ""),
    }


def test_what_is_hidden_is_not_listed(listed: List) -> None:
    assert list(listed(_mine=1, __x=2, yours=3)) == ["yours"]


def test_nothing_of_the_users_is_called(listed: List) -> None:
    kind, summary, mark, _ = listed(trap=Trap())["trap"]
    assert kind == f"{__name__}.Trap"[:60] and summary == "" and mark is not None


def test_a_fingerprint_changes_with_what_is_changed(listed: List) -> None:
    class Thing:
        def __init__(self) -> None:
            self.inner = [1]

    thing = Thing()
    assert vars(thing)  # its attributes lie in a dict of their own from here on
    variables: dict[str, Any] = {"some": [1, 2], "mapping": {"a": 1}, "text": "x", "thing": thing, "still": [1, 2]}
    before = listed(**variables)
    variables["some"].append(3)
    variables["mapping"]["a"] = 2
    thing.inner = [1]
    after = listed(**variables | {"text": "y"})
    changed = {name for name, (_, _, mark, _) in after.items() if mark != before[name][2]}
    assert changed == {"some", "mapping", "thing", "text"}


def test_where_arrays_lie_is_told_and_what_is_in_them_is_not_read(listed: List) -> None:
    array = np.zeros((3, 4))
    frame = pd.DataFrame({"a": np.arange(5)})
    found = listed(array=array, part=array[:, 1], frame=frame)
    kind, summary, mark, places = found["array"]
    assert (kind, summary) == ("numpy.ndarray", "3 x 4 float64")
    assert places == [[array.__array_interface__["data"][0], array.nbytes]]
    assert found["part"][3] is None, "it does not lie in one piece"
    assert (found["frame"][1], [size for _, size in found["frame"][3]]) == ("5 x 1", [40])
    array[0, 0] = 1
    assert listed()["array"][2] == mark


def test_after_some_time_the_rest_is_listed_without_fingerprints(listed: List, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(LISTING).read_text()
    assert "SECONDS = 0.05" in source
    monkeypatch.setattr(runpy, "run_path", lambda _: _run(source.replace("SECONDS = 0.05", "SECONDS = -1.0")))
    kind, summary, mark, _ = listed(n=7)["n"]
    assert (kind, summary, mark) == ("int", "7", None)


def _run(source: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "listing"}
    exec(source, names)
    return names
