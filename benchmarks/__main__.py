"""`python -m benchmarks [row ...]`: the same as `comfy-cluster bench`, without an installation."""

from __future__ import annotations

import sys

from comfy_cluster.cli.main import main

if __name__ == "__main__":
    main(["bench", *sys.argv[1:]])
