"""Whether the long variants of tests run too: CLUSTER_LONG_TESTS=1. CI has time for one of each."""

from __future__ import annotations

import os

IS_LONG = os.environ.get("CLUSTER_LONG_TESTS", "") not in ("", "0")
