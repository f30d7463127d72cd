"""What Resume has done: a page for people (/torpor, next to the dashboard), and metrics for Prometheus (/metrics)."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator
from html import escape
from typing import Any, Final

from dask.utils import format_bytes, format_time
from tornado.web import RequestHandler

from torpor_dask.state import Plugin

_TEMPLATE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="2"><title>Torpor</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 44rem; color: #222; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; padding: .35rem .6rem; border-bottom: 1px solid #ddd; }}
td {{ text-align: right; font-variant-numeric: tabular-nums; }}
.bad {{ color: #a00; }}
</style></head><body>
<h1>Torpor</h1>
<p>Store: <code>{store}</code></p>
<p class="{style}">{health}</p>
<table>{rows}</table>
<p><a href="status">Dask's dashboard</a></p>
</body></html>
"""

_plugins: weakref.WeakSet[Plugin] = weakref.WeakSet()
_collector: list[Any] = []


def numbers(plugin: Plugin) -> list[tuple[str, str, float, str]]:
    """Give name, description, value and unit of each metric."""
    counters = plugin.counters
    loading = list(plugin.loading.values())
    held = sum(one.held is not None for one in loading)
    stored = sum(kept.size for kept in list(plugin.kept.values()))
    return [
        ("held_results", "Results in the store that can be loaded now", len(plugin.kept), ""),
        ("held", "Their size", stored, "bytes"),
        ("kept_results_total", "Results stored since the scheduler started", counters.kept, ""),
        ("written_total", "Written to the store since the scheduler started", counters.written, "bytes"),
        ("loading_results", "Results being loaded", len(loading) - held, ""),
        ("loaded_results_total", "Results loaded instead of computed", counters.loaded, ""),
        ("waiting_keys", "Keys that wait for a frozen worker (experimental)", held, ""),
        ("returned_keys_total", "Keys that a woken worker still had, or finished", counters.returned, ""),
        ("saved_total", "Computing time saved by loading", counters.saved_seconds, "seconds"),
        ("unreadable_results_total", "Results that could not be read and were computed", counters.unreadable, ""),
        ("unkept_results_total", "Results that were to be stored, but are not", counters.unkept, ""),
        ("failed_results_total", "Of these, because the store failed", counters.failed, ""),
        ("healthy", "Whether the latest write to the store succeeded (1) or failed (0)", float(not counters.error), ""),
    ]


class Page(RequestHandler):
    """The page /torpor."""

    def initialize(self, plugin: Plugin) -> None:
        """Take the plugin to show."""
        self.plugin = plugin

    def get(self) -> None:
        """Send the page."""
        counters = self.plugin.counters
        health = "The store works."
        if counters.error:
            age = format_time(time.time() - counters.error_at)
            health = f"The store failed {age} ago: {counters.error}"
        rows = []
        for name, words, value, unit in numbers(self.plugin):
            if name == "healthy":
                continue
            shown = format_bytes(int(value)) if unit == "bytes" else format_time(value) if unit else f"{value:,.0f}"
            rows.append(f"<tr><th>{escape(words)}</th><td>{escape(shown)}</td></tr>")
        self.write(
            _TEMPLATE.format(
                store=escape(self.plugin.store.path),
                style="bad" if counters.error else "",
                health=escape(health),
                rows="".join(rows),
            )
        )


class Collector:
    """The collector for Prometheus: sums over the schedulers of this process (more than one in tests only)."""

    def collect(self) -> Iterator[Any]:
        """Give the metrics."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415 - optional for Dask too

        sums: dict[tuple[str, str, str], float] = {}
        for plugin in list(_plugins):
            for name, words, value, unit in numbers(plugin):
                sums[name, words, unit] = sums.get((name, words, unit), 0.0) + value
        for (name, words, unit), value in sums.items():
            if name.endswith("_total"):
                yield CounterMetricFamily(f"dask_torpor_{name.removesuffix('_total')}", words, value=value, unit=unit)
            else:
                yield GaugeMetricFamily(f"dask_torpor_{name}", words, value=value, unit=unit)


def show(plugin: Plugin) -> None:
    """Add a plugin to the page and the metrics."""
    _plugins.add(plugin)
    application = plugin.scheduler.http_application
    application.add_handlers(".*$", [(r"/torpor", Page, {"plugin": plugin})])
    try:
        import prometheus_client  # noqa: PLC0415 - as above
    except ImportError:
        return  # Dask then has no /metrics either
    if not _collector:
        _collector.append(Collector())
        prometheus_client.REGISTRY.register(_collector[0])


def hide(plugin: Plugin) -> None:
    """Remove a plugin from the metrics."""
    _plugins.discard(plugin)
