"""`python -m comfy_cluster.cli`: the command where its script is not on the PATH."""

from __future__ import annotations

from comfy_cluster.cli.main import main

if __name__ == "__main__":
    main()
