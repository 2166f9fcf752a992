"""The named cases of the lab: the links that the transport is measured and tuned on."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.netlab.profile import LinkProfile


@dataclass(frozen=True, slots=True)
class Case:
    """A link, and what is beside ours on it."""

    name: str
    profile: LinkProfile
    competing_tcp: bool = False
    """One TCP cubic flow runs at the same time, from and to the same hosts."""


_GIGABIT = LinkProfile(rate="1gbit", rtt_ms=1)
_TENTH = LinkProfile(rate="100mbit", rtt_ms=20)
_WIDE = LinkProfile(rate="1gbit", rtt_ms=20)
_LONG = LinkProfile(rate="1gbit", rtt_ms=100)
_FAST = LinkProfile(rate="10gbit", rtt_ms=1)
_JUMBO = LinkProfile(rate="10gbit", rtt_ms=1, mtu=9000)


def _losses(name: str, profile: LinkProfile) -> list[Case]:
    shares = {"0%": 0.0, "0.1%": 0.001, "1%": 0.01, "5%": 0.05}
    return [Case(f"{name}-{text}", replace(profile, loss=loss)) for text, loss in shares.items()]


CASES = {
    case.name: case
    for case in (
        Case("plain-1500", LinkProfile()),
        Case("plain-9000", LinkProfile(mtu=9000)),
        *_losses("100m-20ms", _TENTH),
        *_losses("1g-0ms", LinkProfile(rate="1gbit")),
        *_losses("1g-1ms", _GIGABIT),
        *_losses("1g-20ms", _WIDE),
        *_losses("1g-100ms", _LONG),
        *_losses("1g-1ms-9000", replace(_GIGABIT, mtu=9000)),
        *_losses("10g-1ms", _FAST),
        *_losses("10g-1ms-9000", _JUMBO),
        Case("1g-20ms-deep", replace(_WIDE, queue="deep")),
        Case("1g-20ms-shallow", replace(_WIDE, queue="shallow")),
        Case("100m-20ms-deep", replace(_TENTH, queue="deep")),
        Case("100m-20ms-shallow", replace(_TENTH, queue="shallow")),
        Case("1g-20ms-jitter", replace(_WIDE, jitter_ms=5)),
        Case("1g-20ms-reorder", replace(_WIDE, reorder=0.01)),
        Case("1g-host", LinkProfile(rate="1gbit", bottleneck="host")),
        Case("1g-0ms-tcp", LinkProfile(rate="1gbit"), competing_tcp=True),
        Case("1g-1ms-tcp", _GIGABIT, competing_tcp=True),
        Case("1g-20ms-tcp", _WIDE, competing_tcp=True),
        Case("1g-20ms-deep-tcp", replace(_WIDE, queue="deep"), competing_tcp=True),
        Case("1g-20ms-shallow-tcp", replace(_WIDE, queue="shallow"), competing_tcp=True),
        Case("100m-20ms-tcp", _TENTH, competing_tcp=True),
    )
}
