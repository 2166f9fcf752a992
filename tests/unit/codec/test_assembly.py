"""A tensor put together from parts: the very bits, or CorruptPayload."""

from __future__ import annotations

import itertools
import math
import random
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comfy_cluster.codec import CODECS, Assembly, Part, Place, contents_of, encode, parts_of
from comfy_cluster.codec.dtypes import DTYPES
from comfy_cluster.codec.levels import Levels
from comfy_cluster.codec.tensors import allocate_tensor
from comfy_cluster.errors import CorruptPayload

examples = settings(max_examples=150, deadline=None, derandomize=True)


def octets(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def encoded(values: torch.Tensor, place: Place | None, codec: str = "raw") -> bytes:
    payload = encode(values, codec=codec, place=place)
    return payload.prefix + bytes(payload.body)


def cut(tensor: torch.Tensor, *rows: int) -> list[Part]:
    """Parts that end before each of `rows`, and one of what is left."""
    bounds = [0, *rows, len(tensor)]
    row_size = math.prod(tensor.shape[1:])
    return [
        Part(
            index,
            tensor[start:end],
            Place(tuple(tensor.shape), start * row_size, len(bounds) - 1),
        )
        for index, (start, end) in enumerate(itertools.pairwise(bounds))
    ]


def payloads_of(parts: list[Part], codec: str = "raw") -> list[bytes]:
    return [encoded(part.values, part.place, codec) for part in parts]


def assemble(payloads: list[bytes], **options: Any) -> torch.Tensor:
    assembly = Assembly(payloads[0], **options)
    for index, payload in enumerate(payloads):
        assembly.add(index, payload)
    return assembly.finish()


def refuse(text: str, index: int, payload: bytes) -> None:
    """Where the first of the usual parts was added."""
    assembly = Assembly(PAYLOADS[0])
    assembly.add(0, PAYLOADS[0])
    with pytest.raises(CorruptPayload, match=f"corrupt payload: {text}"):
        assembly.add(index, payload)


TENSOR = torch.arange(60, dtype=torch.int16).reshape(10, 3, 2)
WHOLE = (10, 3, 2)
PARTS = cut(TENSOR, 4, 8)
PAYLOADS = payloads_of(PARTS)


class TestTogether:
    @examples
    @given(
        dtype=st.sampled_from(sorted(DTYPES)),
        shape=st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple),
        codec=st.sampled_from(CODECS),
        count=st.integers(2, 5),
        value_count=st.integers(1, 300),
        data=st.data(),
    )
    def test_any_bits_in_any_order(
        self,
        dtype: str,
        shape: tuple[int, ...],
        codec: str,
        count: int,
        value_count: int,
        data: st.DataObject,
    ) -> None:
        """Few values, of any bits, so that the codecs find something to compress."""
        shape = (8 * count, *shape)
        chance = np.random.default_rng(data.draw(st.integers(0, 2**32)))
        size = DTYPES[dtype].itemsize
        values = chance.integers(0, 2 if dtype == "bool" else 256, (value_count, size), np.uint8)
        chosen = values[chance.integers(0, value_count, math.prod(shape))]
        tensor = torch.from_numpy(chosen).view(DTYPES[dtype]).reshape(shape)
        rows = sorted(data.draw(st.lists(st.integers(1, 8 * count), max_size=count - 1)))
        parts = cut(tensor, *rows, 8 * count)
        payloads = payloads_of(parts, codec)
        assembly = Assembly(data.draw(st.sampled_from(payloads)))
        for part in data.draw(st.permutations(parts)):
            added = assembly.add(part.index, payloads[part.index])
            assert octets(added) == octets(part.values)
        found = assembly.finish()
        assert (found.shape, found.dtype) == (tensor.shape, tensor.dtype)
        assert octets(found) == octets(tensor)

    @pytest.mark.parametrize("codec", CODECS)
    def test_parts_of_a_batch_of_photographs_from_several_threads(
        self, codec: str, photograph: Levels, rng: random.Random
    ) -> None:
        """Strided on the way in: the batch is a view of another one."""
        image = torch.from_numpy(photograph.astype(np.float32) / np.float32(255))
        batch = torch.stack([image, image.flip(0), image.flip(1)]).transpose(1, 2)
        if batch.shape[-1] == 1:
            batch = batch.repeat(3, 1, 1, 1)
        parts = parts_of(batch)
        assert len(parts) > 1
        with ThreadPoolExecutor(4) as pool:
            payloads = list(pool.map(lambda part: encoded(part.values, part.place, codec), parts))
            assert {contents_of(payload).codec for payload in payloads} <= {codec, "raw"}
            assembly = Assembly(payloads[-1])
            order = list(range(len(parts)))
            rng.shuffle(order)
            list(pool.map(lambda index: assembly.add(index, payloads[index]), order))
        assert octets(assembly.finish()) == octets(batch)

    def test_tensor_is_made_in_the_memory_that_is_given(self) -> None:
        memory = bytearray(TENSOR.nbytes)
        asked: list[int] = []

        def allocate(size: int) -> memoryview:
            asked.append(size)
            return memoryview(memory)

        assert torch.equal(assemble(PAYLOADS, allocate=allocate), TENSOR)
        assert asked == [TENSOR.nbytes]
        assert bytes(memory) == octets(TENSOR)

    def test_added_values_are_a_view_of_the_tensor(self) -> None:
        assembly = Assembly(PAYLOADS[1])
        views = [assembly.add(index, payload) for index, payload in enumerate(PAYLOADS)]
        whole = assembly.finish()
        views[2].fill_(-1)
        assert whole[8:].eq(-1).all() and torch.equal(whole[:8], TENSOR[:8])

    @pytest.mark.parametrize("shape", [(2, 0, 3), (0,), (0, 1 << 40)])
    def test_parts_of_nothing(self, shape: tuple[int, ...]) -> None:
        empty = torch.empty(shape, dtype=torch.float16)
        payload = encoded(empty, Place(shape, 0, 2))
        found = assemble([payload, payload])
        assert (found.shape, found.dtype) == (empty.shape, empty.dtype)


class TestFirstPayload:
    def test_what_is_no_part_is_refused(self) -> None:
        with pytest.raises(CorruptPayload, match="corrupt payload: it is no part of a tensor"):
            Assembly(encoded(TENSOR, None))

    def test_size_limit_bounds_the_whole(self) -> None:
        assert torch.equal(assemble(PAYLOADS, size_limit=120), TENSOR)
        with pytest.raises(CorruptPayload, match="a tensor of 120 bytes, 119 allowed"):
            Assembly(PAYLOADS[0], size_limit=119)

    @pytest.mark.parametrize("whole", [(1 << 62,), (1 << 31, 1 << 31), (0, 1 << 62)])
    def test_whole_that_torch_cannot_address_is_refused(self, whole: tuple[int, ...]) -> None:
        payload = encoded(TENSOR[:1], Place(whole, 0, 2))
        with pytest.raises(CorruptPayload, match="too large to address"):
            Assembly(payload)

    def test_memory_that_is_not_there_is_a_memory_error(self) -> None:
        with pytest.raises(MemoryError, match="2305843009213693952 bytes"):
            allocate_tensor((1 << 60,), torch.int16, size_limit=None, allocate=None)

    def test_whole_of_terabytes_is_refused_with_little_memory(self) -> None:
        payload = encoded(TENSOR[:1], Place((1 << 40, 4), 0, 2))
        tracemalloc.start()
        try:
            with pytest.raises(CorruptPayload, match="8796093022208 bytes, 1073741824 allowed"):
                Assembly(payload, size_limit=1 << 30)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 64 << 10


class TestParts:
    def test_the_same_part_twice_is_refused(self) -> None:
        refuse("part 0 comes twice", 0, PAYLOADS[0])
        refuse("part 0 comes twice", 0, PAYLOADS[1])

    @pytest.mark.parametrize("index", [-1, 3, 4, 1 << 40])
    def test_a_part_beyond_the_count_is_refused(self, index: int) -> None:
        refuse(f"part {index} of 3", index, PAYLOADS[1])

    def test_another_dtype_is_refused(self) -> None:
        refuse("part 1 is of dtype uint16", 1, encoded(TENSOR[4:8].view(torch.uint16), PLACE))

    @pytest.mark.parametrize(
        "place",
        [None, Place((60,), 24, 3), Place((10, 2, 3), 24, 3), Place(WHOLE, 24, 2)],
    )
    def test_another_whole_is_refused(self, place: Place | None) -> None:
        refuse("part 1 is of another tensor", 1, encoded(TENSOR[4:8], place))

    @pytest.mark.parametrize("first", [37, 60, 61, 2**63, 2**64 - 1])
    def test_a_part_that_ends_behind_the_tensor_is_refused(self, first: int) -> None:
        payload = encoded(TENSOR[4:8], Place(WHOLE, first, 3))
        refuse(f"part 1 ends at element {first + 24} of 60", 1, payload)

    @pytest.mark.parametrize("codec", CODECS)
    def test_a_damaged_part_is_refused(self, codec: str, photograph: Levels) -> None:
        image = torch.from_numpy(np.ascontiguousarray(photograph[None, :64, :64]))
        whole = (2, *image.shape[1:])
        payload = encoded(image, Place(whole, 0, 2), codec)
        for damaged in (payload[:-1], payload + b"\x00", payload[: len(payload) // 2], b""):
            assembly = Assembly(payload)
            with pytest.raises(CorruptPayload, match=r"^corrupt payload: "):
                assembly.add(0, damaged)

    def test_booleans_of_other_bits_are_refused(self) -> None:
        place = Place((4,), 0, 2)
        payload = bytearray(encoded(torch.tensor([True, False]), place))
        payload[-1] = 2
        with pytest.raises(CorruptPayload, match="a bool that is neither 0 nor 1"):
            Assembly(payload).add(0, payload)


PLACE = Place(WHOLE, 24, 3)


class TestFinish:
    @pytest.mark.parametrize("missing", [0, 1, 2])
    def test_a_missing_part_is_told(self, missing: int) -> None:
        assembly = Assembly(PAYLOADS[0])
        for index in {0, 1, 2} - {missing}:
            assembly.add(index, PAYLOADS[index])
        with pytest.raises(CorruptPayload, match=f"part {missing} begins at element -1"):
            assembly.finish()

    @pytest.mark.parametrize(
        ("spans", "text"),
        [
            ([(0, 4), (5, 10)], "part 1 begins at element 30, not 24"),  # a gap
            ([(0, 4), (3, 10)], "part 1 begins at element 18, not 24"),  # an overlap
            ([(0, 10), (0, 10)], "part 1 begins at element 0, not 60"),
            ([(1, 4), (4, 10)], "part 0 begins at element 6, not 0"),
            ([(0, 4), (4, 9)], "the parts hold 54 elements of 60"),
            ([(4, 10), (0, 4)], "part 0 begins at element 24, not 0"),  # exchanged
        ],
    )
    def test_parts_that_do_not_fill_the_tensor_once_are_refused(
        self, spans: list[tuple[int, int]], text: str
    ) -> None:
        payloads = [
            encoded(TENSOR[start:end], Place(WHOLE, 6 * start, len(spans))) for start, end in spans
        ]
        with pytest.raises(CorruptPayload, match=f"corrupt payload: {text}"):
            assemble(payloads)
