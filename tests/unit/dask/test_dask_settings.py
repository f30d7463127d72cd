"""The settings: where they come from, and what is no value."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import dask.config
import pytest
import yaml
from jsonschema import Draft7Validator

from torpor_dask import Resume, Settings

HOOK = Path(__file__).parents[3] / "scheduler_hooks" / "torpor_dask"


def test_settings_are_those_of_the_schema() -> None:
    defaults = yaml.safe_load((HOOK / "torpor.yaml").read_text())
    schema = yaml.safe_load((HOOK / "torpor-schema.yaml").read_text())
    Draft7Validator.check_schema(schema)
    Draft7Validator(schema).validate(defaults)
    assert schema["properties"]["torpor"]["properties"].keys() == defaults["torpor"].keys()


def test_settings_from_arguments_and_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORPOR_STORE", str(tmp_path))
    assert Settings.read().store == str(tmp_path)
    with dask.config.set({"torpor.min-duration": "2s", "torpor.queue": "1MiB"}):
        plugin = Resume(store=str(tmp_path / "s"), min_duration="3s", warning="SIGUSR1")
    assert plugin.settings == pickle.loads(pickle.dumps(plugin)).settings
    assert (plugin.settings.store, plugin.settings.min_duration) == (str(tmp_path / "s"), 3.0)
    assert (plugin.settings.queue, plugin.settings.warning) == (1 << 20, 10)
    with pytest.raises(TypeError, match="no setting min-size"):
        Resume(min_size=3)
    with pytest.raises(ValueError, match="auto or all"):
        Resume(keep="some")
    with pytest.raises(ValueError, match="not a signal"):
        Resume(warning="SIGSOON")


@pytest.mark.parametrize("value", ["", "5x", "nan", "inf", "-5s", -1, True, [1]])
def test_what_is_no_time_span(value: Any) -> None:
    for name in ("min-duration", "gather", "patience", "drain", "hold"):
        with pytest.raises(ValueError, match=rf"torpor\.{name} is .*; it must be a time span"):
            Settings.read(**{name: value})


@pytest.mark.parametrize("value", ["5x", "-5MB", -1, None, True, float("inf")])
def test_what_is_no_size(value: Any) -> None:
    for name in ("max-size", "queue"):
        with pytest.raises(ValueError, match=rf"torpor\.{name} is .*; it must be a size"):
            Settings.read(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("drain", None), ("patience", None), ("write-through", "no"), ("warm-start", None)),
        *(("warning", "SIGKILL"), ("warning", "SIGSTOP"), ("warning", 10), ("keep", None), ("store", 5)),
    ],
)
def test_what_is_no_value(name: str, value: Any) -> None:
    with dask.config.set({f"torpor.{name}": value}), pytest.raises(ValueError, match=rf"torpor\.{name} is "):
        Settings.read()


def test_numbers_are_seconds_and_bytes() -> None:
    found = Settings.read(gather=0, drain=2.5, hold="1h", queue=0, max_size="1.5 MiB")
    assert (found.gather, found.drain, found.hold) == (0.0, 2.5, 3600.0)
    assert (found.queue, found.max_size) == (0, 3 << 19)
