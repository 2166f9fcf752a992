"""The two threads of an engine: one receives, one sends.

`EngineThreads` hides which loops run: the compiled engine's own, which hold no GIL, or those of
`loops.py`. It knows nothing of peers and buffers. Used by `transport.py` and `control.py`.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from comfy_cluster.transport.loops import PythonLoops

STOP_TIMEOUT = 0.5  # seconds; both loops wait on something that `stop` ends at once


class _Loops(Protocol):
    @property
    def event_fd(self) -> int: ...
    def clear_event_fd(self) -> None: ...
    def wake_sender(self) -> None: ...
    def receive_loop(self) -> None: ...
    def send_loop(self) -> None: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...
    def stats(self) -> dict[str, int]: ...


class CompiledLoops:
    """The compiled engine's own loops. Its calls wake its send loop by themselves."""

    def __init__(self, engine: Any, sock: socket.socket) -> None:
        self._engine = engine
        self._fd = sock.fileno()

    @property
    def event_fd(self) -> int:
        return int(self._engine.event_fd)

    def clear_event_fd(self) -> None:
        self._engine.clear_event_fd()

    def wake_sender(self) -> None:
        """Nothing to do: see the class."""

    def receive_loop(self) -> None:
        self._engine.receive_loop(self._fd)

    def send_loop(self) -> None:
        self._engine.send_loop(self._fd)

    def stop(self) -> None:
        self._engine.stop_loops()

    def close(self) -> None:
        """To be called when both loops have ended. Twice is fine."""
        self._engine.close_loops()

    def stats(self) -> dict[str, int]:
        """Calls and errors of the socket, docs/protocol.md defines them."""
        return dict(self._engine.loop_stats())


class EngineThreads:
    """Owns the receive and the send thread of one engine and one socket."""

    def __init__(
        self,
        engine: Any,
        sock: socket.socket,
        *,
        on_failure: Callable[[BaseException], object],
    ) -> None:
        """`on_failure(error)` is called on a thread that dies by itself."""
        self._loops: _Loops = (CompiledLoops if _has_loops(engine) else PythonLoops)(engine, sock)
        self._on_failure = on_failure
        self._is_stopping = False
        self._threads = [
            threading.Thread(target=self._run, args=(loop,), name=name, daemon=True)
            for loop, name in (
                (self._loops.receive_loop, "comfy-cluster-receive"),
                (self._loops.send_loop, "comfy-cluster-send"),
            )
        ]

    @property
    def event_fd(self) -> int:
        """Readable when the engine may have events."""
        return self._loops.event_fd

    def clear_event_fd(self) -> None:
        """To be called before the events are taken."""
        self._loops.clear_event_fd()

    def wake_sender(self) -> None:
        """To be called after engine methods that queue something to send."""
        self._loops.wake_sender()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop_soon(self) -> None:
        """Lets both threads end, and returns at once."""
        self._is_stopping = True
        self._loops.stop()

    def stop(self) -> bool:
        """Ends both threads; False if one did not end in time. Calling it twice is fine.

        `event_fd` is of no use afterwards.
        """
        self.stop_soon()
        deadline = time.monotonic() + STOP_TIMEOUT
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            return False
        self._loops.close()
        return True

    def stats(self) -> dict[str, int]:
        return self._loops.stats()

    def _run(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except BaseException as error:  # the top of the thread: it ends, and everything fails
            if not self._is_stopping:
                self._on_failure(error)


def _has_loops(engine: Any) -> bool:
    """The compiled engine has none on Windows; its module tells."""
    module = sys.modules[type(engine).__module__]
    return bool(getattr(module, "HAS_LOOPS", False))
