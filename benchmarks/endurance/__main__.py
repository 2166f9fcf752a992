"""`python -m benchmarks.endurance`: the long run, and what came out of it."""

from __future__ import annotations

import argparse
import json
import sys

from benchmarks.endurance.run import INSTANCES, Endurance, run
from benchmarks.netlab import why_unavailable

EXIT_FAILED, EXIT_UNAVAILABLE = 1, 2


def main() -> int:
    parser = argparse.ArgumentParser(description="Mixed transfers over links that lose packets.")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--loss", type=float, default=0.01, help="share of the packets")
    parser.add_argument("--rate", default="1gbit", help="of each instance's link")
    parser.add_argument("--rtt-ms", type=float, default=0.0)
    parser.add_argument("--instances", type=int, default=INSTANCES)
    parser.add_argument("--seed", type=int, default=1, help="of sizes and contents")
    parser.add_argument("--json", action="store_true", help="JSON instead of text")
    options = parser.parse_args()
    reason = why_unavailable()
    if reason is not None:
        print(reason, file=sys.stderr)
        return EXIT_UNAVAILABLE
    endurance = run(
        seconds=options.minutes * 60,
        loss=options.loss,
        rate=options.rate,
        rtt_ms=options.rtt_ms,
        instances=options.instances,
        seed=options.seed,
        is_telling=True,
    )
    print(json.dumps(endurance.reports) if options.json else _text(endurance), flush=True)
    for trouble in endurance.troubles():
        print(f"! {trouble}", file=sys.stderr)
    return EXIT_FAILED if endurance.troubles() else 0


def _text(endurance: Endurance) -> str:
    lines = [
        f"{endurance.rounds} rounds, {endurance.lost_packets} packets lost on the way",
        f"{'instance':>8} {'GB in':>8} {'resent':>7} {'resident MB, 2nd and 4th quarter':>34}"
        f" {'descriptors':>12} {'threads':>8}",
    ]
    for report in endurance.reports:
        early, late = report["second_quarter"], report["last_quarter"]
        resident = f"{early['resident'] / 1e6:.0f} -> {late['resident'] / 1e6:.0f}"
        descriptors = f"{early['descriptors']} -> {late['descriptors']}"
        threads = f"{early['threads']} -> {late['threads']}"
        lines.append(
            f"{report['instance']:>8} {report['bytes_received'] / 1e9:>8.2f}"
            f" {100 * report['resent_share']:>5.1f} % {resident:>34}"
            f" {descriptors:>12} {threads:>8}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
