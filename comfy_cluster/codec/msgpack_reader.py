"""A reader for the part of msgpack that payload envelopes use. Only `envelope.py` calls it.

`msgpack.unpackb` copies every binary value and builds whatever the bytes ask for (1 MB of empty
maps becomes 68 MB of objects). This reader is told what to expect, hands out binary values as views
of the input, and so allocates almost nothing, whatever the bytes are.
"""

from __future__ import annotations

import struct

from comfy_cluster.errors import CorruptPayload

# First byte -> layout of the number that follows (msgpack specification, "Formats").
_INTEGERS = {
    0xCC: struct.Struct(">B"),
    0xCD: struct.Struct(">H"),
    0xCE: struct.Struct(">I"),
    0xCF: struct.Struct(">Q"),
    0xD0: struct.Struct(">b"),
    0xD1: struct.Struct(">h"),
    0xD2: struct.Struct(">i"),
    0xD3: struct.Struct(">q"),
}
_MAP_SIZES = {0xDE: struct.Struct(">H"), 0xDF: struct.Struct(">I")}
_ARRAY_SIZES = {0xDC: struct.Struct(">H"), 0xDD: struct.Struct(">I")}
_TEXT_SIZES = {0xD9: struct.Struct(">B"), 0xDA: struct.Struct(">H"), 0xDB: struct.Struct(">I")}
_BINARY_SIZES = {0xC4: struct.Struct(">B"), 0xC5: struct.Struct(">H"), 0xC6: struct.Struct(">I")}
_BOOLEANS = {0xC2: False, 0xC3: True}


class MsgpackReader:
    """Reads values of the expected type from the front of `data`.

    Every method raises `CorruptPayload`, naming `what`, when the next value is of another type,
    over its limit, or cut off.
    """

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._offset = 0

    def map_size(self, what: str, *, limit: int) -> int:
        """Number of pairs of the map that starts here."""
        return self._size(what, "a map", _MAP_SIZES, fix=(0x80, 0x8F), limit=limit)

    def array_size(self, what: str, *, limit: int) -> int:
        """Number of elements of the array that starts here."""
        return self._size(what, "an array", _ARRAY_SIZES, fix=(0x90, 0x9F), limit=limit)

    def text(self, what: str, *, limit: int) -> str:
        """An ASCII text of at most `limit` characters."""
        size = self._size(what, "a text", _TEXT_SIZES, fix=(0xA0, 0xBF), limit=limit)
        try:
            return bytes(self._take(what, size)).decode("ascii")
        except UnicodeDecodeError:
            raise CorruptPayload(f"corrupt payload: {what} is not ASCII text") from None

    def binary(self, what: str) -> memoryview:
        """A binary value, as a view of the input."""
        size = self._size(what, "a binary", _BINARY_SIZES, fix=None, limit=len(self._data))
        return self._take(what, size)

    def integer(self, what: str) -> int:
        """An integer that is not negative."""
        first = self._byte(what)
        if first < 0x80:
            return first
        if (layout := _INTEGERS.get(first)) is None:
            raise self._wrong_type(what, "a non-negative integer", first)
        value = self._number(what, layout)
        if value < 0:
            raise CorruptPayload(f"corrupt payload: {what} is negative ({value})")
        return value

    def boolean(self, what: str) -> bool:
        """True or False."""
        first = self._byte(what)
        if (value := _BOOLEANS.get(first)) is None:
            raise self._wrong_type(what, "a boolean", first)
        return value

    def rest(self) -> memoryview:
        """What was not read yet, as a view of the input."""
        return self._data[self._offset :]

    def _size(
        self,
        what: str,
        type_name: str,
        layouts: dict[int, struct.Struct],
        *,
        fix: tuple[int, int] | None,
        limit: int,
    ) -> int:
        first = self._byte(what)
        if fix is not None and fix[0] <= first <= fix[1]:
            size = first - fix[0]
        elif (layout := layouts.get(first)) is not None:
            size = self._number(what, layout)
        else:
            raise self._wrong_type(what, type_name, first)
        if size > limit:
            raise CorruptPayload(f"corrupt payload: {what} has size {size}, the limit is {limit}")
        return size

    def _byte(self, what: str) -> int:
        return self._take(what, 1)[0]

    def _number(self, what: str, layout: struct.Struct) -> int:
        value: int = layout.unpack(self._take(what, layout.size))[0]
        return value

    def _take(self, what: str, size: int) -> memoryview:
        taken = self._data[self._offset : self._offset + size]
        if len(taken) != size:
            raise CorruptPayload(
                f"corrupt payload: it ends inside {what} ({size} bytes wanted, {len(taken)} left)"
            )
        self._offset += size
        return taken

    def _wrong_type(self, what: str, type_name: str, first: int) -> CorruptPayload:
        return CorruptPayload(
            f"corrupt payload: {what} should be {type_name}, found msgpack type 0x{first:02x}"
        )
