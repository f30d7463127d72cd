"""The server's counts of checkpoints and restores, on Jupyter's own page for Prometheus (``/metrics``)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from prometheus_client import REGISTRY
from prometheus_client.core import Metric

from torpor import metrics


class Collector:
    """Gives Prometheus what the engine has counted in this process."""

    def collect(self) -> Iterator[Metric]:
        """Give every metric as it is now."""
        for family in metrics.families():
            metric = Metric(family.name, family.help, family.kind)
            for name, labels, value in family.samples:
                metric.add_sample(name, dict(labels), value)
            yield metric


@cache
def show() -> None:
    """Add the counts to the page. A process has one page, though several servers may run in it."""
    REGISTRY.register(Collector())
