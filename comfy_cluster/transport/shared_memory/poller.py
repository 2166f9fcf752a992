"""Which of the sockets have something: one epoll, itself a descriptor to wait for."""

from __future__ import annotations

import select
from collections.abc import Iterable
from functools import partial

from comfy_cluster.transport.shared_memory import forks
from comfy_cluster.transport.shared_memory.link import Link


class Poller:
    """Watches one listener and any number of links. Control thread only."""

    def __init__(self, listener_fd: int) -> None:
        self._epoll = select.epoll()
        self._listener_fd = listener_fd
        # Told once for each caller: one that cannot be accepted for want of descriptors would
        # otherwise keep the control thread awake.
        self._epoll.register(listener_fd, select.EPOLLIN | select.EPOLLET)
        self._watched: dict[int, tuple[Link, bool]] = {}
        forks.close_in_child(self)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def watch(self, links: Iterable[Link]) -> None:
        """All links that are open, and whether they wait for room."""
        for link in links:
            fd, is_waiting = link.fileno(), link.is_waiting
            watched = self._watched.get(fd)
            if watched == (link, is_waiting):
                continue
            wanted = select.EPOLLIN | (select.EPOLLOUT if is_waiting else 0)
            if watched is None:
                self._epoll.register(fd, wanted)
                link.on_close = partial(self._forget, fd)
            else:
                self._epoll.modify(fd, wanted)
            self._watched[fd] = (link, is_waiting)

    def _forget(self, fd: int) -> None:
        # By hand: while the child of a fork has a copy, closing alone would not do it.
        del self._watched[fd]
        self._epoll.unregister(fd)

    def ready(self) -> tuple[bool, list[Link]]:
        """Whether the listener has callers, and the links that can be read or written."""
        fds = [fd for fd, _ in self._epoll.poll(0)]
        links = [self._watched[fd][0] for fd in fds if fd in self._watched]
        return self._listener_fd in fds, links

    def close(self) -> None:
        """Twice is fine."""
        self._epoll.close()
