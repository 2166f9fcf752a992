"""One buffer on its way: chunks read from source memory, chunks placed into destination memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .bitmap import ChunkBitmap

if TYPE_CHECKING:
    from .peer import PeerFlow


def chunk_count_of(size: int, chunk_size: int) -> int:
    return (size + chunk_size - 1) // chunk_size


def check_layout(size: int, chunk_size: int, largest_chunk: int) -> None:
    """Raise ValueError for a buffer that the chunk header cannot describe."""
    if not 1 <= chunk_size <= largest_chunk:
        raise ValueError(f"chunk_size must be 1 to {largest_chunk}, not {chunk_size}")
    if size < 0 or chunk_count_of(size, chunk_size) > 0xFFFFFFFF:
        raise ValueError(f"a buffer of {size} bytes cannot travel in chunks of {chunk_size}")


class OutgoingBuffer:
    """A payload being sent: `prefix`, then `body`, cut into chunks as they leave."""

    def __init__(self, buffer_id: int, prefix: bytes, body: memoryview, chunk_size: int) -> None:
        self.buffer_id = buffer_id
        self.chunk_size = chunk_size
        self.size = len(prefix) + len(body)
        self.acked = ChunkBitmap(chunk_count_of(self.size, chunk_size))
        self.next_chunk = 0
        self.available_chunks = self.chunk_count  # a relay's grow as its source arrives
        self.is_closed = False
        self._prefix = prefix
        self._body = body

    @property
    def chunk_count(self) -> int:
        return self.acked.chunk_count

    def chunk_length(self, chunk_index: int) -> int:
        return min(self.chunk_size, self.size - chunk_index * self.chunk_size)

    def chunk(self, chunk_index: int) -> bytes:
        """Return the bytes of one chunk."""
        start = chunk_index * self.chunk_size
        end = start + self.chunk_length(chunk_index)
        split = len(self._prefix)
        return self._prefix[start:end] + bytes(
            self._body[max(start - split, 0) : max(end - split, 0)]
        )

    @property
    def has_unsent(self) -> bool:
        """Whether a chunk that was never sent may go."""
        return self.next_chunk < self.available_chunks

    @property
    def bytes_left(self) -> int:
        """Of what was never sent, whether it is here yet or not."""
        return self.size - self.next_chunk * self.chunk_size

    def set_available(self, size: int) -> None:
        """Let go out what lies in the first `size` bytes."""
        is_whole = size == self.size
        self.available_chunks = self.chunk_count if is_whole else size // self.chunk_size

    def close(self) -> None:
        """Let go of the memory."""
        self.is_closed = True
        self._body = memoryview(b"")


class IncomingBuffer:
    """A payload being assembled in memory that the receiver registered."""

    def __init__(
        self, peer: int, buffer_id: int, destination: memoryview, *, size: int, chunk_size: int
    ) -> None:
        self.peer = peer
        self.buffer_id = buffer_id
        self.size = size
        self.chunk_size = chunk_size
        self.received = ChunkBitmap(chunk_count_of(size, chunk_size))
        self.relays: dict[int, tuple[PeerFlow, OutgoingBuffer]] = {}
        self._prefix_chunks = 0
        self._destination = destination

    @property
    def is_complete(self) -> bool:
        return self.received.is_complete

    @property
    def memory(self) -> memoryview:
        return self._destination[: self.size]

    def contiguous_size(self) -> int:
        """Return how many bytes from the start on have arrived without a gap."""
        while self._prefix_chunks in self.received:
            self._prefix_chunks += 1
        return min(self._prefix_chunks * self.chunk_size, self.size)

    def place(self, chunk_index: int, total_chunks: int, chunk_size: int, data: bytes) -> int:
        """Put a chunk where it belongs. Return 1 when it was new, 0 for a duplicate, -1 when it
        contradicts the announcement."""
        if total_chunks != self.received.chunk_count or chunk_size != self.chunk_size:
            return -1
        if chunk_index >= total_chunks:
            return -1
        start = chunk_index * chunk_size
        if len(data) != min(chunk_size, self.size - start):
            return -1
        if not self.received.add(chunk_index):
            return 0
        self._destination[start : start + len(data)] = data
        return 1

    def close(self) -> None:
        """Let go of the memory; relays keep theirs."""
        self.relays.clear()
        self._destination = memoryview(b"")
