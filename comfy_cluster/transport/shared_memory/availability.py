"""Whether this machine can do what shared memory needs: tried, not guessed from version numbers."""

from __future__ import annotations

import os
import socket
import sys

TRIAL_SIZE = 4096  # bytes


def why_unavailable() -> str:
    """Why payloads cannot go through shared memory here; empty when they can."""
    needed = ((os, "memfd_create"), (socket, "AF_UNIX"), (socket, "SO_PEERCRED"))
    if sys.platform != "linux" or not all(hasattr(module, name) for module, name in needed):
        return "it needs Linux"
    try:
        import select

        select.epoll().close()
        _try_segment()
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).close()
    except (OSError, ValueError, MemoryError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _try_segment() -> None:
    from comfy_cluster.transport.shared_memory import system_calls

    fd = system_calls.create_segment(TRIAL_SIZE)
    try:
        written = system_calls.map_writable(fd, TRIAL_SIZE)
        system_calls.unmap(written, TRIAL_SIZE)
        system_calls.seal(fd)
        system_calls.check_segment(fd, TRIAL_SIZE)
        seen = system_calls.map_private(fd, TRIAL_SIZE)
        system_calls.unmap(seen, TRIAL_SIZE)
    finally:
        os.close(fd)
