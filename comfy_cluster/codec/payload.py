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


def digest_of(*parts: Buffer) -> bytes:
    """xxh3_128 over `parts`, one after the other: 16 bytes, big-endian (the canonical form).

    It finds damage, not forgery: the hash has no key. xxhash releases the GIL while it works on
    large input (about 8 GB/s measured), so that a thread pool may call it.
    """
    state = xxhash.xxh3_128()
    for part in parts:
        state.update(part)
    return state.digest()


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
