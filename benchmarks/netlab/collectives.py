"""Broadcast and all-gather where each instance has a link of its own, against one transfer alone.

    python -m benchmarks.netlab.collectives --rate 1gbit --instances 8

Rows: a payload to one peer; to all peers, to each directly and along a chain; every instance's to
all others, around the ring and directly. The goal is that a broadcast along the chain takes at most
1.5 times as long as one transfer. `of ideal` is the time that the bytes need on the fullest link;
`CPU s` is what the processes of a round took together, without what the lab itself costs: where
that is near the seconds times the machine's cores, the machine is measured and not the links.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from typing import Any

from benchmarks.netlab.collective_worker import ALL_DIRECT, ALL_GATHER, DIRECT, ONE, WAYS
from benchmarks.netlab.lab import Lab
from benchmarks.netlab.profile import LinkProfile
from benchmarks.netlab.requirements import why_unavailable

PORT = 9998
EXIT_UNAVAILABLE = 2


def measure(
    profile: LinkProfile, *, instances: int, megabytes: float, rounds: int, ways: tuple[str, ...]
) -> list[dict[str, Any]]:
    """One row a way; each round counts until the last instance is done."""
    with Lab(profile, hosts=instances) as lab:
        addresses = [f"{host.address}:{PORT}" for host in lab.hosts]
        module = [sys.executable, "-m", "benchmarks.netlab.collective_worker"]
        options = ["--megabytes", str(megabytes), "--rounds", str(rounds), "--ways", *ways]
        workers = [
            host.popen(
                [*module, str(host.index), *addresses, *options],
                stdout=subprocess.PIPE,
                text=True,
            )
            for host in lab.hosts
        ]
        found = [json.loads(worker.communicate()[0]) for worker in workers]
    size = megabytes * 1e6
    return [_row(way, found, profile, size=size, instances=instances) for way in ways]


def _row(
    way: str, found: list[dict[str, Any]], profile: LinkProfile, *, size: float, instances: int
) -> dict[str, Any]:
    rounds = [max(taken) for taken in zip(*(each["seconds"][way] for each in found), strict=True)]
    payloads = instances - 1 if way in (DIRECT, ALL_GATHER, ALL_DIRECT) else 1
    bits = profile.bits_per_second
    return {
        "way": way,
        "seconds": statistics.median(rounds),
        "rounds": rounds,
        "cpu_seconds": sum(each["cpu_seconds"][way] for each in found) / len(rounds),
        "ideal": None if bits is None else payloads * size * 8 / bits,
        "routes_broken": sum(each["stats"]["routes_broken"] for each in found),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", default="1gbit", help="of each instance's link")
    parser.add_argument("--mtu", type=int, default=1500)
    parser.add_argument("--loss", type=float, default=0.0)
    parser.add_argument("--rtt-ms", type=float, default=0.0)
    parser.add_argument("--made-by", default="auto", help="as of `python -m benchmarks.netlab`")
    parser.add_argument("--instances", type=int, default=8)
    parser.add_argument("--megabytes", type=float, default=25.0, help="of one payload")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--json", action="store_true", help="JSON instead of text")
    options = parser.parse_args()
    reason = why_unavailable()
    if reason is not None:
        print(reason, file=sys.stderr)
        sys.exit(EXIT_UNAVAILABLE)
    names = ("mtu", "rate", "loss", "rtt_ms", "made_by")
    try:
        profile = LinkProfile(**{name: getattr(options, name) for name in names})
    except ValueError as error:
        sys.exit(str(error))
    rows = measure(
        profile,
        instances=options.instances,
        megabytes=options.megabytes,
        rounds=options.rounds,
        ways=tuple(options.ways),
    )
    print(json.dumps(rows) if options.json else _text(rows), flush=True)


def _text(rows: list[dict[str, Any]]) -> str:
    alone = next((row["seconds"] for row in rows if row["way"] == ONE), None)
    lines = [f"{'way':18} {'seconds':>8} {'to one':>7} {'of ideal':>9} {'CPU s':>7} {'broken':>7}"]
    for row in rows:
        to_one = "-" if alone is None else f"{row['seconds'] / alone:.2f}x"
        of_ideal = "-" if row["ideal"] is None else f"{100 * row['ideal'] / row['seconds']:.0f} %"
        lines.append(
            f"{row['way']:18} {row['seconds']:8.3f} {to_one:>7} {of_ideal:>9}"
            f" {row['cpu_seconds']:7.3f} {row['routes_broken']:>7}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
