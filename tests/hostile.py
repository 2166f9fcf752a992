"""Packets that no honest peer sends, for the engine's tests and the whole core's.

`nasty_packets` gives only packets that must be refused, so a test can count them; `mutated` may
also turn out valid.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests import packets


@dataclass(frozen=True)
class Target:
    """What an attacker might know: the session, and a buffer that is being received."""

    session: int
    buffer_id: int
    chunk_count: int
    chunk_size: int


def nasty_packets(rng: random.Random, target: Target, *, count: int) -> list[bytes]:
    """Return `count` packets of which the engine must accept none, whatever came before."""
    makers = (random_bytes, cut_header, foreign_session, absurd_chunk, absurd_sack, long_message)
    return [rng.choice(makers)(rng, target) for _ in range(count)]


def random_bytes(rng: random.Random, target: Target) -> bytes:
    """Bytes of chance; the first keeps them from being ours."""
    return bytes([rng.randrange(0xC0)]) + rng.randbytes(rng.choice([0, 1, 15, 40, 1199]))


def cut_header(rng: random.Random, target: Target) -> bytes:
    return packets.message(target.session, rng.getrandbits(40), b"")[: rng.randrange(16)]


def foreign_session(rng: random.Random, target: Target) -> bytes:
    kind = rng.choice([0xC1, 0xC2, 0xC3])
    session = (target.session + rng.randrange(1, 2**32)) % 2**32
    return packets.packet(kind, session, rng.getrandbits(40), rng.randbytes(40))


def absurd_chunk(rng: random.Random, target: Target) -> bytes:
    wrong = rng.randrange(5)
    return packets.chunk(
        target.session,
        rng.getrandbits(62),
        buffer_id=target.buffer_id + (wrong == 0),
        chunk_index=rng.randrange(target.chunk_count, 2**32) if wrong == 1 else 0,
        total_chunks=rng.randrange(target.chunk_count + 1, 2**32)
        if wrong == 2
        else target.chunk_count,
        chunk_size=rng.randrange(target.chunk_size + 1, 2**32) if wrong == 3 else target.chunk_size,
        data=bytes(rng.randrange(target.chunk_size) if wrong == 4 else target.chunk_size),
    )


def absurd_sack(rng: random.Random, target: Target) -> bytes:
    """Of packets far beyond any that were sent, or with lengths that contradict themselves."""
    counter = rng.getrandbits(62)
    if rng.random() < 0.5:
        return packets.sack(target.session, counter, {2**50 + rng.getrandbits(10)})
    payload = packets.sack_payload({rng.randrange(100)})
    payload = payload[:16] + packets.u(rng.randrange(5, 65_536), 2) + payload[18:]
    return packets.packet(0xC3, target.session, counter, payload)


def long_message(rng: random.Random, target: Target) -> bytes:
    size = rng.choice([1169, 1400, 60_000])
    return packets.message(target.session, rng.getrandbits(62), bytes(size))


def mutated(rng: random.Random, data: bytes) -> bytes:
    """Change, cut, extend or repeat bytes of a real packet."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        if changed:
            changed[rng.randrange(min(len(changed), 60))] = rng.randrange(256)
    choice = rng.randrange(6)
    if choice == 0:
        return bytes(changed[: rng.randrange(len(changed) + 1)])
    if choice == 1:
        return bytes(changed) + rng.randbytes(rng.randrange(1, 100))
    return bytes(changed)
