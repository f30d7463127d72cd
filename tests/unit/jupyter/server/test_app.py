"""Where the extension is off, and how it begins."""

from __future__ import annotations

import asyncio
import logging
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection
from tornado.ioloop import IOLoop
from traitlets.config import Config

from tests.unit.jupyter.conftest import Server
from torpor_jupyter.server.app import TorporApp
from torpor_jupyter.server.handlers import Off


def server_app(server: Server, **known: Any) -> Any:
    """What a ServerApp has that the extension asks for."""
    return SimpleNamespace(
        kernel_manager=server.manager,
        session_manager=server.service.registry.sessions,
        contents_manager=server.service.notebooks.contents,
        gateway_config=SimpleNamespace(gateway_enabled=False),
        kernel_websocket_connection_class=ZMQChannelsWebsocketConnection,
        event_logger=SimpleNamespace(register_event_schema=lambda path: None, emit=lambda **event: None),
        config=Config(),
        config_file_paths=[],
        extra_args=[],
        update_config=lambda config: None,
        **known,
    )


@pytest.mark.parametrize(
    ("others", "why"),
    [
        (
            {"gateway_config": SimpleNamespace(gateway_enabled=True, url="http://gateway")},
            "the gateway at http://gateway",
        ),
        ({"kernel_manager": object()}, "managed by object"),
        ({"kernel_websocket_connection_class": str}, "those of str"),
    ],
)
def test_what_is_others_is_not_replaced(server: Server, others: dict[str, Any], why: str) -> None:
    """Torpor is off then, and whoever asks is told why."""
    app = TorporApp(log=logging.getLogger("server"))
    app.serverapp = server_app(server)
    vars(app.serverapp).update(others)
    app.initialize_settings()
    app.initialize_handlers()
    assert app.service is None and list(app.settings) == ["torpor_why_off"]
    assert why in app.settings["torpor_why_off"]
    assert [handler for _, handler in app.handlers] == [Off]


def test_another_provisioner_stays_the_one_that_starts_kernels(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN)
    factory = KernelProvisionerFactory.instance(parent=server.manager)

    async def begins() -> None:
        for before, after in (("local-provisioner", "torpor"), ("slurm-provisioner", "slurm-provisioner")):
            factory.default_provisioner_name = before
            app = TorporApp(log=logging.getLogger("server"), store=server.service.registry.store.path)
            app.serverapp = server_app(server, io_loop=IOLoop.current())
            app.initialize_settings()
            assert factory.default_provisioner_name == after
            assert app._adopting
            await app._adopting
            await app.stop_extension()
        await asyncio.sleep(0)

    asyncio.run(begins())
    assert "started by slurm-provisioner" in caplog.text


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
