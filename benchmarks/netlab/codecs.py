"""Our codecs on links of the lab, from tensor to tensor, beside `auto`: part of the row `codecs`.

    python -m benchmarks.netlab.codecs
    python -m benchmarks.netlab.codecs --rate 1gbit --codec raw bitpack auto --tensor image noisy

`comfy-cluster bench codecs` has the same tables on loopback, and what each codec is without a
network. The relay makes the links, also without a delay: it costs less of what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence

from rich.console import Console

from benchmarks.netlab.lab import Lab
from benchmarks.netlab.profile import MAKERS, LinkProfile
from benchmarks.netlab.requirements import why_unavailable
from benchmarks.netlab.wiring import HOST_DEVICE
from comfy_cluster.benchmarks.codec_links import (
    BATCH_SIZE,
    codecs_to_compare,
    compare_codecs,
    link_transfers,
)
from comfy_cluster.benchmarks.instances import Instances, Site
from comfy_cluster.benchmarks.results import Table
from comfy_cluster.benchmarks.rows import ROWS
from comfy_cluster.benchmarks.run import machine
from comfy_cluster.benchmarks.transfers import IMAGE_SIDE
from comfy_cluster.cli.bench import show_table
from comfy_cluster.config import Codec

EXIT_UNAVAILABLE = 2
TIMEOUT = 300.0  # seconds a round: a raw batch at 100 Mbit/s takes 9
RATES = ("10gbit", "1gbit", "100mbit")
RTT_MS = 0.2  # as between two machines at one switch
TENSORS = ("image", "batch", "noisy", "latent")  # the transfers of `link_transfers`, in its order


def main(arguments: Sequence[str] | None = None) -> None:
    """`arguments`: those of the command line, by default."""
    options = _parser().parse_args(arguments)
    reason = why_unavailable() or ROWS["codecs"].missing
    if reason is not None:
        print(reason, file=sys.stderr)
        sys.exit(EXIT_UNAVAILABLE)
    try:
        profiles = [
            LinkProfile(mtu=options.mtu, rate=rate, rtt_ms=options.rtt_ms, made_by=options.made_by)
            for rate in options.rate
        ]
    except ValueError as error:
        sys.exit(str(error))
    tables = []
    for profile in profiles:
        for table in measure_link(profile, options):
            tables.append(table)
            if not options.json:
                show_table(Console(width=140), table)
    if options.json:
        values = [table.to_json() for table in tables]
        print(json.dumps({"machine": machine(), "rounds": options.rounds, "tables": values}))


def measure_link(profile: LinkProfile, options: argparse.Namespace) -> Iterator[Table]:
    """A table for each tensor."""
    transfers = link_transfers(options.side, batch_size=options.batch_size)
    with Lab(profile) as lab, Instances(_sites(lab), os.environ, timeout=TIMEOUT) as instances:
        for name, transfer in zip(TENSORS, transfers, strict=True):
            if name in options.tensor:
                yield compare_codecs(
                    instances,
                    transfer,
                    codecs=codecs_to_compare(options.codec),
                    link=_link_text(profile),
                    rounds=options.rounds,
                    on_progress=_show_progress,
                )


def _sites(lab: Lab) -> list[Site]:
    return [
        Site(host.address, command_prefix=tuple(host.command([])), interface=HOST_DEVICE)
        for host in lab.hosts
    ]


def _link_text(profile: LinkProfile) -> str:
    return f"{profile.rate}, RTT {profile.rtt_ms:g} ms, MTU {profile.mtu}"


def _show_progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}\r", end="", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", nargs="+", default=list(RATES), help="links, one after the other")
    parser.add_argument("--rtt-ms", type=float, default=RTT_MS)
    parser.add_argument("--mtu", type=int, default=1500)
    parser.add_argument("--made-by", choices=MAKERS, default="relay")
    parser.add_argument(
        "--codec", nargs="+", choices=[str(each) for each in Codec], default=[], help="these only"
    )
    parser.add_argument("--tensor", nargs="+", choices=TENSORS, default=list(TENSORS))
    parser.add_argument("--side", type=int, default=IMAGE_SIDE, help="of the images, in pixels")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="all figures as JSON")
    return parser


if __name__ == "__main__":
    main()
