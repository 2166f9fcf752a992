"""The bytes of one tensor: size, digest, no torch."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
import xxhash

from comfy_cluster.codec.payload import DIGEST_BLOCK, DIGEST_SIZE, EncodedPayload, digest_of


def test_digest_is_xxh3_128_over_prefix_then_body() -> None:
    payload = EncodedPayload(b"head", memoryview(b"body"), "raw")
    assert payload.digest() == xxhash.xxh3_128_digest(b"headbody")
    assert payload.digest() == digest_of(b"he", b"adbo", bytearray(b"dy"))
    assert len(payload.digest()) == DIGEST_SIZE


def test_digest_vector() -> None:
    """The canonical form of the xxHash specification: the empty input, seed 0."""
    assert digest_of().hex() == "99aa06d3014798d86001c324468d497f"


def test_size_counts_both_parts() -> None:
    assert EncodedPayload(b"1234", memoryview(b"567"), "raw").size == 7


@pytest.mark.parametrize(
    "body",
    [
        memoryview(b"12345678").cast("I"),
        memoryview(b"1234")[::2],
        memoryview(bytes(4)).cast("B", [2, 2]),
    ],
)
def test_body_must_be_flat_bytes(body: memoryview) -> None:
    with pytest.raises(ValueError, match="flat memoryview"):
        EncodedPayload(b"", body, "raw")


def test_payload_and_envelope_import_no_torch() -> None:
    code = (
        "import sys, comfy_cluster.codec, comfy_cluster.codec.payload, "
        "comfy_cluster.codec.envelope; assert 'torch' not in sys.modules; "
        "from comfy_cluster.codec import encode; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("size", [DIGEST_BLOCK, DIGEST_BLOCK + 1, 3 * DIGEST_BLOCK - 5])
def test_digest_of_several_blocks_is_the_digest_of_their_digests(size: int) -> None:
    data = random.Random(size).randbytes(size)
    blocks = [data[at : at + DIGEST_BLOCK] for at in range(0, size, DIGEST_BLOCK)]
    digests = [xxhash.xxh3_128_digest(block) for block in blocks]
    expected = digests[0] if len(digests) == 1 else xxhash.xxh3_128_digest(b"".join(digests))
    assert digest_of(data) == expected
    assert digest_of(data[:100], data[100 : DIGEST_BLOCK + 7], data[DIGEST_BLOCK + 7 :]) == expected


def test_digest_finds_every_changed_and_every_swapped_block() -> None:
    data = bytearray(random.Random(1).randbytes(2 * DIGEST_BLOCK + 10))
    before = digest_of(data)
    for place in (0, DIGEST_BLOCK - 1, DIGEST_BLOCK, 2 * DIGEST_BLOCK, len(data) - 1):
        data[place] ^= 1
        assert digest_of(data) != before
        data[place] ^= 1
    assert digest_of(data) == before
    assert digest_of(data[DIGEST_BLOCK : 2 * DIGEST_BLOCK], data[:DIGEST_BLOCK]) != before
