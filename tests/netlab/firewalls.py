"""Rules of nftables in the hosts of a lab."""

from __future__ import annotations

import subprocess

from benchmarks.netlab import Host


def add_rules(host: Host, text: str) -> None:
    command = host.command(["nft", "-f", "-"])
    subprocess.run(command, input=text, text=True, check=True)


def drop(host: Host, hook: str, match: str, verdict: str = "drop") -> None:
    """For what comes `input` or goes `output`; `allow` takes it back."""
    lines = [
        f"table inet {_table(hook)} {{",
        f"chain c {{ type filter hook {hook} priority 0;",
        f"{match} {verdict}",
        "}",
        "}",
    ]
    add_rules(host, "\n".join(lines) + "\n")


def allow(host: Host, hook: str) -> None:
    """All that `drop` keeps from that hook."""
    add_rules(host, f"delete table inet {_table(hook)}\n")


def _table(hook: str) -> str:
    return f"test_{hook}"
