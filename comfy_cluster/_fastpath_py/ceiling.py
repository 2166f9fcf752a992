"""The raw ceiling of the compiled engine has no twin: in Python it would not be one."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

HAS_CEILING = False
_TEXT = "the raw ceiling needs the compiled packet engine; this is the pure-Python one"


def ceiling_send(
    fd: int, source: Buffer, *, segment_size: int, window: int, nonce: int, timeout: float
) -> dict[str, int]:
    raise OSError(errno.ENOSYS, _TEXT)


def ceiling_receive(
    fd: int, destination: Buffer, *, window: int, nonce: int, timeout: float
) -> dict[str, int]:
    raise OSError(errno.ENOSYS, _TEXT)
