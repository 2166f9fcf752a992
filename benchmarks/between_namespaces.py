"""The row `point-to-point` between two network namespaces: ours and its peers on one link, as root.

    python -m benchmarks.between_namespaces --mtu 1500 --megabytes 101
    python -m benchmarks.between_namespaces --rate 1gbit --megabytes 26

The processes, ways and checks are those of `comfy-cluster bench`; the link is the lab's. A plain
one passes super-packets of 64 KB on whole, as a veth pair does. Instances in two namespaces share a
machine and yet not always memory: `ours-udp` is the way that two machines have.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

from rich.console import Console

from benchmarks.netlab.lab import Lab
from benchmarks.netlab.profile import LinkProfile
from benchmarks.netlab.requirements import why_unavailable
from benchmarks.netlab.wiring import HOST_DEVICE
from comfy_cluster.benchmarks.instances import Instances, Site
from comfy_cluster.benchmarks.measure import able_ways, measure, open_ways
from comfy_cluster.benchmarks.results import Table, comparison_table
from comfy_cluster.benchmarks.run import machine
from comfy_cluster.benchmarks.transfers import point_to_point
from comfy_cluster.benchmarks.ways import WAYS
from comfy_cluster.cli.bench import show_table

EXIT_UNAVAILABLE = 2
TIMEOUT = 300.0  # seconds a round: 403 MB at 100 Mbit/s take 32, and a lossy link many times that


def main() -> None:
    options = _parser().parse_args()
    reason = why_unavailable()
    if reason is not None:
        print(reason, file=sys.stderr)
        sys.exit(EXIT_UNAVAILABLE)
    profile = LinkProfile(
        mtu=options.mtu, rate=options.rate, loss=options.loss, rtt_ms=options.rtt_ms
    )
    tables = []
    with Lab(profile) as lab, Instances(_sites(lab), os.environ, timeout=TIMEOUT) as instances:
        for megabytes in options.megabytes:
            tables.append(compare(instances, megabytes, options))
            if not options.json:
                show_table(Console(width=140), tables[-1])
    if options.json:
        values = [table.to_json() for table in tables]
        print(json.dumps({"machine": machine(), "rounds": options.rounds, "tables": values}))


def compare(instances: Instances, megabytes: float, options: argparse.Namespace) -> Table:
    """One tensor by all ways."""
    transfer = point_to_point(megabytes)
    opened = open_ways(instances, able_ways(options.way or list(WAYS), transfer))
    results = measure(instances, transfer, opened.names, rounds=options.rounds)
    ours = [name for name in opened.names if WAYS[name].is_ours]
    title = (
        f"one float32 tensor of {megabytes:g} MB between two network namespaces, {_link(options)}"
    )
    return comparison_table("between-namespaces", title, results, ours=ours, missing=opened.missing)


def _sites(lab: Lab) -> list[Site]:
    return [
        Site(host.address, command_prefix=tuple(host.command([])), interface=HOST_DEVICE)
        for host in lab.hosts
    ]


def _link(options: argparse.Namespace) -> str:
    texts = [f"MTU {options.mtu}", options.rate or "no rate limit"]
    texts += [f"loss {options.loss:.2%}"] if options.loss else []
    texts += [f"RTT {options.rtt_ms:g} ms"] if options.rtt_ms else []
    return ", ".join(texts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mtu", type=int, default=1500)
    parser.add_argument("--rate", help="as in 1gbit; without it the link is as fast as it can be")
    parser.add_argument("--loss", type=float, default=0.0, help="share of the packets")
    parser.add_argument("--rtt-ms", type=float, default=0.0)
    parser.add_argument("--megabytes", type=float, nargs="+", default=[101.0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--way", nargs="+", choices=WAYS, help="these ways only")
    parser.add_argument("--json", action="store_true", help="all figures as JSON")
    return parser


if __name__ == "__main__":
    main()
