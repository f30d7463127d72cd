"""The page /torpor and the metrics: what they show of a plugin."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

from tornado.httpclient import AsyncHTTPClient
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from torpor.store import Store
from torpor_dask import page
from torpor_dask.state import Counters


class Plugin:
    """A view of a plugin with two stored results, one key that is loaded, and two that are held."""

    def __init__(self, store: Store, **counted: Any) -> None:
        self.counters = Counters(**counted)
        self.kept = {"a": SimpleNamespace(size=3 << 20), "b": SimpleNamespace(size=1 << 20)}
        self.loading = dict(enumerate(SimpleNamespace(held=held) for held in (None, object(), object())))
        self.store = store
        self.scheduler = SimpleNamespace(http_application=Application())


def plugin(store: Store, **counted: Any) -> Any:
    return Plugin(store, **counted)


def shown(one: Any) -> str:
    """The page, as a browser gets it."""

    async def fetched() -> str:
        page.show(one)
        (socket,) = bind_sockets(0, "127.0.0.1")
        server = HTTPServer(one.scheduler.http_application)
        server.add_sockets([socket])
        try:
            url = f"http://127.0.0.1:{socket.getsockname()[1]}/torpor"
            return (await AsyncHTTPClient().fetch(url)).body.decode()
        finally:
            server.stop()
            page.hide(one)

    return asyncio.run(fetched())


def test_the_page_shows_what_is_kept_loaded_and_held(store: Store) -> None:
    text = shown(plugin(store, saved_seconds=90.0, returned=1234))
    for words, value in (
        ("Results in the store that can be loaded now", "2"),
        ("Their size", "4.00 MiB"),
        ("Results being loaded", "1"),
        ("Keys that wait for a frozen worker (experimental)", "2"),
        ("Keys that a woken worker still had, or finished", "1,234"),
        ("Computing time saved by loading", "90.00 s"),
    ):
        assert f"<th>{words}</th><td>{value}</td>" in text
    assert "The store works." in text and 'class="bad"' not in text and store.path in text


def test_an_error_of_the_store_is_shown_as_text(store: Store) -> None:
    text = shown(plugin(store, error="no <b>room</b>", error_at=time.time() - 60))
    assert 'class="bad"' in text and "no &lt;b&gt;room&lt;/b&gt;" in text and "<b>room" not in text
    assert "The store failed 60.0" in text.replace("60.00", "60.0")


def test_metrics_are_sums_over_the_schedulers_that_are_shown(store: Store) -> None:
    one, two, hidden = plugin(store, kept=1), plugin(store, kept=2, error="x"), plugin(store, kept=4)
    for each in (one, two, hidden):
        page.show(each)
    page.hide(hidden)
    try:
        found = {family.name: family for family in page.Collector().collect()}
    finally:
        page.hide(one)
        page.hide(two)
    kept, healthy = found["dask_torpor_kept_results"], found["dask_torpor_healthy"]
    assert (kept.type, kept.samples[0].name, kept.samples[0].value) == ("counter", "dask_torpor_kept_results_total", 3)
    assert (healthy.type, healthy.samples[0].value) == ("gauge", 1)
