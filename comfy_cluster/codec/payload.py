"""The bytes of one tensor on their way, and their digest. Imports no torch: `transport/` uses it.

It does not know what the bytes mean; `envelope.py` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import xxhash

if TYPE_CHECKING:
    from typing_extensions import Buffer

DIGEST_SIZE = 16  # bytes: xxh3_128, docs/protocol.md
DIGEST_BLOCK = 4 << 20  # bytes that are hashed by themselves, so that several threads can share it


def digest_of(*parts: Buffer) -> bytes:
    """The digest of `parts`, one after the other: 16 bytes. docs/protocol.md defines it.

    It finds damage, not forgery: the hash has no key. xxhash releases the GIL while it works on
    large input (about 8 GB/s measured), so that a thread pool may call it.
    """
    return join_digests([digest_of_block(block) for block in digest_blocks(*parts)])


def digest_blocks(*parts: Buffer) -> list[list[memoryview]]:
    """Cut `parts` into blocks of `DIGEST_BLOCK` bytes, the last one shorter; at least one.

    Each block is a list of views, since it may lie across parts.
    """
    blocks: list[list[memoryview]] = [[]]
    room = DIGEST_BLOCK
    for part in parts:
        rest = memoryview(part).cast("B")
        while len(rest):
            if not room:
                blocks.append([])
                room = DIGEST_BLOCK
            blocks[-1].append(rest[:room])
            taken = len(blocks[-1][-1])
            rest, room = rest[taken:], room - taken
    return blocks


def digest_of_block(block: list[memoryview]) -> bytes:
    """xxh3_128, big-endian (the canonical form)."""
    state = xxhash.xxh3_128()
    for view in block:
        state.update(view)
    return state.digest()


def join_digests(digests: list[bytes]) -> bytes:
    """The digest of a payload from those of its blocks, in their order."""
    return digests[0] if len(digests) == 1 else xxhash.xxh3_128_digest(b"".join(digests))


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPayload:
    """One encoded tensor: `prefix` and then `body` are the payload's bytes.

    `prefix` (the envelope up to the tensor's first byte) is a multiple of 64 bytes long, so that
    the body is aligned in a receiver's aligned memory. `body` is flat, C-contiguous, of format "B",
    and may be the memory of the tensor itself: the tensor must not be changed in place until the
    transfer is done, and `body` keeps it alive.
    """

    prefix: bytes
    body: memoryview
    codec: str
    holds_levels: bool = False
    """It is of 8-bit levels, not of the tensor's memory."""

    def __post_init__(self) -> None:
        if self.body.format != "B" or self.body.ndim != 1 or not self.body.c_contiguous:
            raise ValueError("the body of a payload must be a flat memoryview of bytes")

    @property
    def size(self) -> int:
        """Bytes of the whole payload."""
        return len(self.prefix) + len(self.body)

    def digest(self) -> bytes:
        """`digest_of` prefix and body. Reads all the memory: not for the control thread."""
        return digest_of(self.prefix, self.body)
