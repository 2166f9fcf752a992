"""The commands of `comfy-cluster stun` where the server is installed alone, as in its container:

python -m stun_server keys add my-cluster
"""

from __future__ import annotations

from stun_server.commands import stun

if __name__ == "__main__":
    stun(prog_name="python -m stun_server")
