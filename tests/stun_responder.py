"""A STUN server as small as one can be, for tests of those who ask; with an encoder of its own.

Written from RFC 8489, not from our code. `python -m tests.stun_responder ADDRESS PORT` runs one.
"""

from __future__ import annotations

import ipaddress
import socket
import sys
import threading
from collections.abc import Callable
from types import TracebackType

from tests.packets import STUN_COOKIE, stun, u

Address = tuple[str, int]
Answer = Callable[[bytes, Address], list[bytes]]
"""Takes a request and where it came from."""

SUCCESS, ERROR = 0x0101, 0x0111
WAIT = 30.0  # seconds; a bound for a broken build


def mapped_address(address: Address, transaction_id: bytes, *, attribute: int = 0x0020) -> bytes:
    """XOR-MAPPED-ADDRESS (section 14.2), or MAPPED-ADDRESS (0x0001), which is not masked."""
    ip = ipaddress.ip_address(address[0])
    mask = u(STUN_COOKIE, 4) + transaction_id if attribute == 0x0020 else bytes(16)
    port = bytes(a ^ b for a, b in zip(u(address[1], 2), mask, strict=False))
    packed = bytes(a ^ b for a, b in zip(ip.packed, mask, strict=False))
    value = u(1 if ip.version == 4 else 2, 2) + port + packed
    return u(attribute, 2) + u(len(value), 2) + value


def success(transaction_id: bytes, address: Address) -> bytes:
    return stun(transaction_id, mapped_address(address, transaction_id), kind=SUCCESS)


def error(transaction_id: bytes, code: int) -> bytes:
    value = bytes([0, 0, code // 100, code % 100]) + b"no, never"
    return stun(transaction_id, u(0x0009, 2) + u(len(value), 2) + value + b"\0" * 3, kind=ERROR)


def honest(request: bytes, source: Address) -> list[bytes]:
    """What a STUN server says; no answer to what is no Binding request."""
    is_request = request[:2] == u(0x0001, 2) and request[4:8] == u(STUN_COOKIE, 4)
    return [success(request[8:20], source)] if is_request else []


class StunResponder:
    """Answers on a thread of its own, from a socket that tests may use too."""

    def __init__(self, address: str = "127.0.0.1", port: int = 0, answer: Answer = honest) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_DGRAM)
        self.sock.bind((address, port))
        self.sock.settimeout(0.05)
        self.requests: list[tuple[bytes, Address]] = []
        self._answer = answer
        self._is_closed = False
        self._thread = threading.Thread(target=self.run, daemon=True)

    @property
    def address(self) -> Address:
        address: Address = self.sock.getsockname()[:2]
        return address

    def __enter__(self) -> StunResponder:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_closed = True
        self._thread.join(WAIT)
        self.sock.close()

    def run(self) -> None:
        while not self._is_closed:
            try:
                request, source = self.sock.recvfrom(2048)
            except TimeoutError:
                continue
            self.requests.append((request, source[:2]))
            for answer in self._answer(request, source[:2]):
                self.sock.sendto(answer, source)


if __name__ == "__main__":
    StunResponder(sys.argv[1], int(sys.argv[2])).run()
