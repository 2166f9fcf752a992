"""The relay's process: makes the hosts' TAP devices and carries what they send. `lab.py` starts it.

It ends when its input ends, that is with the lab, however that ends. Any line on its input is
answered by a line of counters.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import json
import os
import struct
import sys
from pathlib import Path

from benchmarks.netlab.namespaces import FOLDER
from benchmarks.netlab.relay_build import READY, load_relay
from benchmarks.netlab.requirements import TUN_DEVICE
from benchmarks.netlab.wiring import HOST_DEVICE

INTEGERS = ("queue", "burst", "delay", "jitter", "hold", "seed")
FRACTIONS = ("rate", "loss", "reorder")
LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000  # linux/sched.h; os.setns is of Python 3.12
# linux/if_tun.h
TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
TUNSETVNETHDRSZ = 0x400454D8
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
# The virtio header tells what is still to be done: to add checksums, to cut super-packets.
# Linux announces USO for IPv4 and IPv6 together or not at all; the lab has no IPv6.
TUN_F_CSUM, TUN_F_TSO4, TUN_F_USO4, TUN_F_USO6 = 0x01, 0x02, 0x20, 0x40
OFFLOADS = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_USO4 | TUN_F_USO6
VIRTIO_HEADER = 10  # bytes
REAL_TIME_PRIORITY = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--module", type=Path, required=True)
    for name in INTEGERS:
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in FRACTIONS:
        parser.add_argument(f"--{name}", type=float, required=True)
    parser.add_argument("namespaces", nargs="+")
    options = parser.parse_args()
    settings = {name: getattr(options, name) for name in (*INTEGERS, *FRACTIONS)}
    devices = _open_devices(options.namespaces)
    relay = load_relay(options.module).Relay(devices, **settings)
    _ask_for_real_time()
    print(READY, flush=True)
    while True:
        relay.run(sys.stdin.fileno())
        if not os.read(sys.stdin.fileno(), 4096):
            return
        print(json.dumps(relay.stats()), flush=True)


def _open_devices(namespaces: list[str]) -> list[int]:
    """The hosts' TAP devices, each made in its host; they are there as long as this process."""
    own = Path("/proc/self/ns/net")
    with own.open() as home:
        devices = []
        for name in namespaces:
            with (FOLDER / name).open() as file:
                _enter(file.fileno())
            devices.append(_open_device())
        _enter(home.fileno())
    return devices


def _enter(namespace: int) -> None:
    if LIBC.setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "the relay cannot enter a host's namespace")


def _open_device() -> int:
    fd = os.open(TUN_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", HOST_DEVICE.encode(), flags))
    fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", VIRTIO_HEADER))
    fcntl.ioctl(fd, TUNSETOFFLOAD, OFFLOADS)
    return fd


def _ask_for_real_time() -> None:
    """A delay must not depend on what else the machine does; a container may refuse it."""
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(REAL_TIME_PRIORITY))


if __name__ == "__main__":
    main()
