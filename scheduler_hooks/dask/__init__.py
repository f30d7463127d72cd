"""Dask: freeze a worker when its node is taken away, and wake it on another."""
