"""Records of a link: bytes and back, and everything else refused."""

from __future__ import annotations

import random

import pytest

from comfy_cluster.errors import RemoteProtocolError
from comfy_cluster.transport.shared_memory import records
from comfy_cluster.transport.shared_memory.proof import TAG_SIZE
from comfy_cluster.transport.shared_memory.records import (
    Accept,
    Connect,
    Dropped,
    Filled,
    GivenUp,
    Record,
    Released,
)

LARGEST = (1 << 64) - 1
EXAMPLES: list[tuple[Record, str]] = [
    (
        Connect(0x0102, 0x1122334455667788, bytes(range(16))),
        "0101021122334455667788" + bytes(range(16)).hex(),
    ),
    (Accept(bytes(range(16))), "02" + bytes(range(16)).hex()),
    (
        Filled(1, 2, 3, LARGEST),
        "03" + "0000000000000001" + "0000000000000002" + "0000000000000003" + "f" * 16,
    ),
    (GivenUp(0x0001000000000007), "040001000000000007"),
    (Released(9, 1), "05000000000000000901"),
    (Dropped(9), "060000000000000009"),
]


@pytest.mark.parametrize(("record", "packed"), EXAMPLES)
def test_records_are_packed_as_documented_and_parsed_back(record: Record, packed: str) -> None:
    assert records.pack(record).hex() == packed
    assert records.parse(bytes.fromhex(packed)) == record
    assert len(records.pack(record)) <= records.LARGEST_RECORD


@pytest.mark.parametrize(("record", "packed"), EXAMPLES)
def test_a_record_of_another_length_is_refused(record: Record, packed: str) -> None:
    data = bytes.fromhex(packed)
    for wrong in (data[:-1], data + b"\0", data[:1]):
        with pytest.raises(RemoteProtocolError):
            records.parse(wrong)


def test_bytes_of_any_kind_are_parsed_or_refused(rng: random.Random) -> None:
    for _ in range(2000):
        data = rng.randbytes(rng.randrange(records.LARGEST_RECORD + 2))
        try:
            record = records.parse(data)
        except RemoteProtocolError:
            continue
        assert records.pack(record) == data


def test_a_tag_has_the_size_of_the_proofs() -> None:
    assert len(records.pack(Accept(bytes(TAG_SIZE)))) == 1 + TAG_SIZE
