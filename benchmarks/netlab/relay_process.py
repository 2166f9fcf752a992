"""The relay's process: opens the TAP devices and runs the delay line. Started by `lab.py`.

It ends when its input ends, that is with the lab, however that ends. Any line on its input is
answered by a line of counters.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import struct
import sys
from pathlib import Path

from benchmarks.netlab.relay_build import READY, load_relay
from benchmarks.netlab.requirements import TUN_DEVICE

# linux/if_tun.h
TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
TUNSETVNETHDRSZ = 0x400454D8
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
# The virtio header tells what is still to be done: to add checksums, to cut super-packets.
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_USO4, TUN_F_USO6 = 0x01, 0x02, 0x04, 0x20, 0x40
OFFLOADS = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_USO4 | TUN_F_USO6
VIRTIO_HEADER = 10  # bytes
SLOT_SIZE = 68 << 10  # bytes: the largest super-packet with its headers, in whole pages
FRAME_COUNT = 32_768  # 2 GB of address space; memory is used as far as frames wait
REAL_TIME_PRIORITY = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--module", type=Path, required=True)
    for name in ("delay", "jitter", "hold", "seed"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--reorder", type=float, required=True)
    parser.add_argument("devices", nargs="+")
    options = parser.parse_args()
    relay = load_relay(options.module).Relay(
        [_open_device(name) for name in options.devices],
        delay=options.delay,
        jitter=options.jitter,
        hold=options.hold,
        reorder=options.reorder,
        seed=options.seed,
        slot_size=SLOT_SIZE,
        frame_count=FRAME_COUNT,
    )
    _ask_for_real_time()
    print(READY, flush=True)
    while True:
        relay.run(sys.stdin.fileno())
        if not os.read(sys.stdin.fileno(), 4096):
            return
        print(json.dumps(relay.stats()), flush=True)


def _ask_for_real_time() -> None:
    """A delay must not depend on what else the machine does; a container may refuse it."""
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(REAL_TIME_PRIORITY))


def _open_device(name: str) -> int:
    fd = os.open(TUN_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", VIRTIO_HEADER))
    fcntl.ioctl(fd, TUNSETOFFLOAD, OFFLOADS)
    return fd


if __name__ == "__main__":
    main()
