"""A wake-up: lets any thread end another one's wait in `select`.

It carries no data: what there is to do lies elsewhere, and is looked at after `clear`.
"""

from __future__ import annotations

import contextlib
import socket


class WakeUp:
    """A socket pair, because `select` waits for nothing else on Windows.

    `set` may be called from any thread, and by the garbage collector in the middle of anything:
    it takes no lock. Only one thread waits and clears.
    """

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._is_set = False

    def fileno(self) -> int:
        """Readable while set."""
        return self._reader.fileno()

    def set(self) -> None:
        """Ends the wait; setting it again before it is cleared costs nothing."""
        if not self._is_set:
            self._is_set = True
            # BlockingIOError: it is full, hence set. Other errors: closed, nobody waits.
            with contextlib.suppress(OSError):
                self._writer.send(b"\0")

    def clear(self) -> None:
        """To be called before looking at what there is to do."""
        with contextlib.suppress(BlockingIOError):
            while len(self._reader.recv(4096)) == 4096:
                pass
        # Last: who sets it from now on writes again, and who set it before this line is seen by
        # the look that follows. The other order would lose the byte of one who comes in between.
        self._is_set = False

    def close(self) -> None:
        self._reader.close()
        self._writer.close()
