"""The link lab: network links with a rate, loss, delay and a queue, on one Linux machine, for root.

    with Lab(LinkProfile(rate="1gbit", loss=0.01, rtt_ms=20)) as lab:
        server = lab.hosts[1].popen(["iperf3", "-s", "-1"])
        lab.hosts[0].run(["iperf3", "-c", lab.hosts[1].address])

For benchmarks and tests; no part of the installed package. `why_unavailable` says what is missing.
docs/performance.md tells how to use it, and what it can carry.
"""

from benchmarks.netlab.lab import Host, Lab
from benchmarks.netlab.profile import LinkProfile
from benchmarks.netlab.requirements import LabUnavailable, why_unavailable

__all__ = ["Host", "Lab", "LabUnavailable", "LinkProfile", "why_unavailable"]
