"""The link lab's command line: what ours, TCP cubic and TCP BBR make of one link.

python -m benchmarks.netlab --rate 1gbit --loss 0.01 --rtt-ms 20 --compare
python -m benchmarks.netlab --case 1g-20ms-1% --flows ours cubic
python -m benchmarks.netlab --list
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any

from benchmarks.netlab import flows
from benchmarks.netlab.cases import CASES, Case
from benchmarks.netlab.lab import Lab
from benchmarks.netlab.profile import LinkProfile
from benchmarks.netlab.requirements import why_unavailable

EXIT_UNAVAILABLE = 2
HEAD = (
    f"  {'flow':6} {'Mbit/s':>8} {'of link':>8} {'resent':>8}"
    f" {'s/GB send':>10} {'s/GB recv':>10} {'RTT ms':>8} {'p95':>8}"
)


def main() -> None:
    options = _parser().parse_args()
    if options.list:
        print("\n".join(f"{case.name:22} {_link_text(case)}" for case in CASES.values()))
        return
    reason = why_unavailable("iperf3")
    if reason is not None:
        print(reason, file=sys.stderr)
        sys.exit(EXIT_UNAVAILABLE)
    results = []
    for case in _cases(options):
        result = _run(case, options)
        results.append(result)
        if not options.json:
            print(_text(case, result), flush=True)
    if options.json:
        print(json.dumps(results))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--case", nargs="+", choices=CASES, help="named links", metavar="NAME")
    which.add_argument("--all-cases", action="store_true", help="every named link")
    which.add_argument("--list", action="store_true", help="print the named links")
    defaults = LinkProfile()
    special: dict[str, Callable[[str], Any]] = {"queue": _queue, "rate": str}
    for field in fields(LinkProfile):
        default = getattr(defaults, field.name)
        parse = special.get(field.name, type(default))
        parser.add_argument("--" + field.name.replace("_", "-"), type=parse, default=default)
    parser.add_argument("--flows", nargs="+", choices=flows.FLOWS)
    parser.add_argument("--compare", action="store_true", help="ours, TCP cubic and TCP BBR")
    parser.add_argument("--competing-tcp", action="store_true", help="TCP cubic beside ours")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each flow")
    parser.add_argument("--megabytes", type=float, default=32.0, help="of each of our payloads")
    parser.add_argument("--json", action="store_true", help="JSON instead of text")
    return parser


def _queue(text: str) -> str | int:
    return int(text) if text.isdigit() else text


def _cases(options: argparse.Namespace) -> list[Case]:
    if options.all_cases:
        return list(CASES.values())
    if options.case:
        return [CASES[name] for name in options.case]
    try:
        profile = LinkProfile(
            **{field.name: getattr(options, field.name) for field in fields(LinkProfile)}
        )
    except ValueError as error:
        sys.exit(str(error))
    return [Case("as asked", profile, options.competing_tcp)]


def _run(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    rows: list[flows.Row] = []
    chosen = options.flows or ([flows.OURS, *flows.available_tcp()] if options.compare else None)
    with Lab(case.profile) as lab:
        before = lab.counters()
        if case.competing_tcp or options.competing_tcp:
            rows += flows.measure_beside_tcp(lab, options.seconds)
        else:
            for flow in chosen or [flows.OURS]:
                rows += [
                    flows.measure(lab, flow, seconds=options.seconds, megabytes=options.megabytes)
                ]
        after = lab.counters()
    counted = {name: value - getattr(before, name) for name, value in asdict(after).items()}
    return {
        "case": case.name,
        "link": asdict(case.profile),
        "rows": [row.as_json() for row in rows],
        "counters": counted,
    }


def _link_text(case: Case) -> str:
    profile, default = case.profile, LinkProfile()
    parts = [f"MTU {profile.mtu}", profile.rate or "no limit", f"loss {100 * profile.loss:g} %"]
    parts += [f"RTT {profile.rtt_ms:g} ms", f"{profile.queue} queue"]
    for name in ("jitter_ms", "reorder", "bottleneck"):
        value = getattr(profile, name)
        parts += [f"{name} {value}"] if value != getattr(default, name) else []
    return ", ".join(parts + (["beside TCP cubic"] if case.competing_tcp else []))


def _text(case: Case, result: dict[str, Any]) -> str:
    lines = [f"{case.name}: {_link_text(case)}", HEAD]
    lines += [_row_text(row) for row in result["rows"]]
    return "\n".join([*lines, *_counter_texts(case, result["counters"])])


def _counter_texts(case: Case, counted: dict[str, Any]) -> list[str]:
    """What the lab did, and whether the figures can be believed."""
    parts = [f"{counted['queue_drops']} packets dropped by queues"]
    if case.profile.loss:
        parts = [
            f"{counted['lost_packets']} of {counted['offered_packets']} lost at random",
            *parts,
        ]
    if case.profile.is_relayed:
        parts += [f"relay: {counted['relay_cpu']:.2f} CPU seconds"]
        parts += [f"at most {counted['latest_us'] / 1e3:.1f} ms late"]
    lines = ["  " + ", ".join(parts)]
    if counted["overruns"]:
        lines.append(
            f"  {counted['overruns']} packets lost by the lab itself: it could not keep up"
        )
    if counted["super_packets"]:
        lines.append("  super-packets met the losses: those were not of single packets")
    return lines


def _row_text(row: dict[str, Any]) -> str:
    share = "-" if row["share"] is None else f"{100 * row['share']:.1f} %"
    median, p95 = (
        "-" if row[name] is None else f"{row[name]:.1f}" for name in ("rtt_median_ms", "rtt_p95_ms")
    )
    return (
        f"  {row['flow']:6} {row['goodput'] / 1e6:8.0f} {share:>8}"
        f" {100 * row['retransmit_share']:6.2f} % {row['sender_cpu']:10.2f}"
        f" {row['receiver_cpu']:10.2f} {median:>8} {p95:>8}"
    )


if __name__ == "__main__":
    main()
