"""JupyterHub on one node: a server that the hub stops parks its kernels, and the next one has them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.jupyter import TOKEN, Answer, Server, wait_until
from tests.users import User

CONFIG = """
import os, sys
from jupyterhub.proxy import Proxy

class NoProxy(Proxy):
    '''The test asks the single-user server at its own port.'''
    should_start = False
    routes = {{}}

    async def add_route(self, routespec, target, data):
        self.routes[routespec] = {{"routespec": routespec, "target": target, "data": data}}

    async def delete_route(self, routespec):
        self.routes.pop(routespec, None)

    async def get_all_routes(self):
        return self.routes

c.JupyterHub.proxy_class = NoProxy
c.JupyterHub.bind_url = "http://127.0.0.1:{public}"
c.JupyterHub.hub_bind_url = "http://127.0.0.1:{hub}"
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.JupyterHub.services = [{{"name": "test", "api_token": {token!r}}}]
scopes = ["admin:users", "admin:servers", "access:servers", "list:users"]
c.JupyterHub.load_roles = [{{"name": "test", "services": ["test"], "scopes": scopes}}]
c.JupyterHub.spawner_class = "simple"
c.SimpleLocalProcessSpawner.home_dir_template = os.environ["HOME"] + "/{{username}}"
c.Spawner.port = {port}
c.Spawner.cmd = [sys.executable, "-m", "jupyterhub.singleuser"]
# As docs/jupyter.md has it.
c.Spawner.environment = {{"TORPOR_STORE": lambda spawner: f"{{os.environ['HOME']}}/{{spawner.user.name}}-store"}}
c.Spawner.env_keep = ["PATH", "PYTHONPATH", "LANG", "TORPOR_TEST_MARK", "TORPOR_PROVE"]
c.LocalProcessSpawner.interrupt_timeout = 120
"""


class HubServer(Server):
    """The single-user server of a hub; asked as any other."""

    def __init__(self, user: User, url: str) -> None:
        super().__init__(user)
        self.url = url


@pytest.mark.soak
def test_a_server_that_the_hub_stops(ordinary_account: User) -> None:
    user = ordinary_account
    packages = user.tmp / "packages"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(packages), "jupyterhub>=5"]
    subprocess.run(install, check=True, env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    subprocess.run(["chmod", "-R", "a+rX", str(packages)], check=True)
    ports = free_ports(3)
    config = user.tmp / "jupyterhub_config.py"
    config.write_text(CONFIG.format(**dict(zip(("public", "hub", "port"), ports, strict=True)), token=TOKEN))
    hub = HubServer(user, f"http://127.0.0.1:{ports[1]}/hub/")
    server = HubServer(user, f"http://127.0.0.1:{ports[2]}/user/ann/")
    environment = {"PYTHONPATH": str(packages), "PYTHONDONTWRITEBYTECODE": "1"}
    log = user.tmp / "hub.log"
    with open(log, "wb") as out:
        command: list[str | Path] = [sys.executable, "-m", "jupyterhub", "-f", config]
        process = user.popen(command, env=environment, stdout=out, stderr=out)
    try:
        wait_until(lambda: is_up(hub, "api/"), "the hub answers", 120)
        hub.post("api/users/ann")
        hub.post("api/users/ann/server")
        wait_until(lambda: is_up(server, "api/status"), "the server answers", 120)
        session, kernel = server.new_session("work.ipynb")
        folder = user.home / "ann-store" / "jupyter" / "kernels"
        wait_until(lambda: any("work.ipynb" in path.read_text() for path in folder.glob("*.json")), "it is noted")
        hub.ask("DELETE", "api/users/ann/server", timeout=180)
        wait_until(lambda: stopped(hub), "the server has ended", 180)
        hub.post("api/users/ann/server")
        wait_until(lambda: is_up(server, "api/status"), "the server answers again", 120)
        told = server.kernel(kernel)
        assert (told["state"], told["sessions"][0]["id"]) == ("parked", session)
        assert server.torpor(kernel, "/resume")["state"] == "living"
        server.ask("DELETE", f"api/kernels/{kernel}")
    finally:
        process.terminate()
        process.wait(120)
        print(log.read_text(errors="replace")[-4000:])


def free_ports(count: int) -> list[int]:
    found = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in found]
    for sock in found:
        sock.close()
    return ports


def is_up(server: Server, path: str) -> bool:
    try:
        server.get(path)
    except (Answer, OSError):
        return False
    return True


def stopped(hub: Server) -> bool:
    told: dict[str, Any] = hub.get("api/users/ann")
    return told["server"] is None and told["pending"] is None
