"""The counts of checkpoints on Jupyter's page for Prometheus."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from torpor import metrics
from torpor.errors import Reason, Refused
from torpor_jupyter.server.metrics import Collector


def test_the_page_has_the_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_here", {})
    registry = CollectorRegistry()
    registry.register(Collector())
    assert b"# TYPE torpor_checkpoints_total counter" in generate_latest(registry)
    metrics.saved(0.5, 0.02, 4096, 1024)
    metrics.failed("checkpoint", Refused("nothing was saved", [Reason("fd 7", "it is lost")]))
    lines = generate_latest(registry).decode().splitlines()
    assert 'torpor_checkpoints_total{result="saved"} 1.0' in lines
    assert 'torpor_refusals_total{of="checkpoint",reason="it is lost"} 1.0' in lines
    assert 'torpor_pause_seconds_bucket{le="0.1"} 1.0' in lines
