"""Where the extension is off, and how it begins."""

from __future__ import annotations

import asyncio
import logging
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tornado.ioloop import IOLoop
from traitlets.config import Config

from tests.unit.jupyter.conftest import Server
from torpor_jupyter.server.app import TorporApp


def server_app(server: Server, **known: Any) -> Any:
    """What a ServerApp has that the extension asks for."""
    return SimpleNamespace(
        kernel_manager=server.manager,
        session_manager=server.service.registry.sessions,
        contents_manager=server.service.notebooks.contents,
        gateway_config=SimpleNamespace(gateway_enabled=False),
        event_logger=SimpleNamespace(register_event_schema=lambda path: None, emit=lambda **event: None),
        config=Config(),
        config_file_paths=[],
        extra_args=[],
        update_config=lambda config: None,
        **known,
    )


def test_a_gateways_kernels_are_not_touched(server: Server) -> None:
    app = TorporApp(log=logging.getLogger("server"))
    app.serverapp = server_app(server)
    app.serverapp.gateway_config = SimpleNamespace(gateway_enabled=True, url="http://gateway")
    app.initialize_settings()
    app.initialize_handlers()
    assert (app.service, app.settings, app.handlers) == (None, {}, [])


def test_a_server_with_a_setting_that_cannot_be_does_not_start(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    linked = server_app(server)
    linked.config = Config({"TorporApp": {"when_stopping": "parking"}})
    with pytest.raises(SystemExit):
        TorporApp(log=logging.getLogger("server"))._link_jupyter_server_extension(linked)
    assert "when_stopping" in caplog.text


def test_a_server_with_a_configuration_file_that_is_wrong_does_not_start(
    server: Server, caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever names the store: its kernels could not be saved later."""
    (tmp_path / "torpor").mkdir()
    (tmp_path / "torpor/config.toml").write_text("smal-files = 1")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("TORPOR_STORE", str(tmp_path / "store"))
    with pytest.raises(SystemExit):
        TorporApp(log=logging.getLogger("server"))._link_jupyter_server_extension(server_app(server))
    assert "there is no setting 'smal-files'; did you mean small-files?" in caplog.text


def test_it_begins_inside_a_running_event_loop(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a program that starts a server in its own loop."""
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN)
    app = TorporApp(log=logging.getLogger("server"), store=server.service.registry.store.path)

    async def begins() -> None:
        app.serverapp = server_app(server, io_loop=IOLoop.current())
        app.initialize_settings()
        assert app._adopting and app.service
        await app._adopting
        await app.stop_extension()
        await asyncio.sleep(0)

    asyncio.run(begins())
