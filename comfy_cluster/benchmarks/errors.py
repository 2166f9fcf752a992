"""The two errors of the benchmarks: one stops the run, the other leaves a way out of it."""

from __future__ import annotations

from comfy_cluster.errors import ClusterError


class BenchmarkError(ClusterError):
    """The run cannot go on; the text says which instance, which way, and what to do."""


class Unavailable(ClusterError):
    """A way cannot be measured here; the text is the reason. Never fatal."""
