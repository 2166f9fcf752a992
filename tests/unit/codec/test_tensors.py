"""encode and decode: the same bits for every tensor, and never a copy too many."""

from __future__ import annotations

import gc
import math
import warnings
import weakref
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comfy_cluster import config
from comfy_cluster.codec import CODECS, PRECISION_CHOICES, EncodedPayload, decode, encode
from comfy_cluster.codec.dtypes import DTYPES
from comfy_cluster.codec.levels import Levels
from comfy_cluster.codec.png import SIGNATURE
from comfy_cluster.errors import ConfigError, CorruptPayload, UnsupportedTensor

examples = settings(max_examples=150, deadline=None, derandomize=True)
shapes = st.lists(st.integers(0, 5), max_size=5).map(tuple)
SPEC_DTYPES = [
    *("float32", "float64", "float16", "bfloat16", "bool"),
    *("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
]


def payload_bytes(payload: EncodedPayload) -> bytearray:
    return bytearray(payload.prefix) + payload.body


def round_trip(tensor: torch.Tensor, **options: Any) -> torch.Tensor:
    return decode(payload_bytes(encode(tensor, **options)))


def octets(tensor: torch.Tensor) -> bytes:
    contiguous = tensor.detach().contiguous()
    return contiguous.reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert octets(found) == octets(expected)
    assert found.is_contiguous() and found.device.type == "cpu" and not found.requires_grad


def tensor_of_bytes(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Any bits: all NaN payloads, infinities, subnormal numbers, -0.0."""
    count = math.prod(shape)
    generator = np.random.default_rng(seed)
    if dtype == torch.bool:
        return (
            torch.from_numpy(generator.integers(0, 2, count, dtype=np.uint8)).bool().reshape(shape)
        )
    data = bytearray(generator.bytes(max(count, 1) * dtype.itemsize))
    return torch.frombuffer(data, dtype=dtype)[:count].reshape(shape)


def special_values(dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Zeros, extremes and bits at random; of floats NaN of several bits, -0.0, subnormals too."""
    if dtype == torch.bool:
        return torch.tensor([False, True])
    drawn = tensor_of_bytes(dtype, (3,), seed)
    if not dtype.is_floating_point:
        limits = torch.iinfo(dtype)
        return torch.cat([drawn, torch.tensor([0, 1, limits.min, limits.max], dtype=dtype)])
    limits_of = torch.finfo(dtype)
    values = [0.0, -0.0, 1.0, math.inf, -math.inf, math.nan, limits_of.tiny, -limits_of.max]
    specials = torch.cat([drawn, torch.tensor(values, dtype=dtype)])
    patterns = torch.tensor([1, -1, -2], dtype=INTEGERS[dtype.itemsize])  # subnormal, NaN, NaN
    return torch.cat([specials, patterns.view(dtype)])


INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def photo_tensor(photograph: Levels) -> torch.Tensor:
    """The photograph as ComfyUI's LoadImage gives it: float32 [1, H, W, C]."""
    return torch.from_numpy(photograph.astype(np.float32) / 255.0)[None]


class TestExact:
    def test_all_dtypes_of_the_specification(self) -> None:
        assert set(SPEC_DTYPES) == set(DTYPES)

    @examples
    @given(st.sampled_from(SPEC_DTYPES), shapes, st.integers(0, 2**32), st.sampled_from(CODECS))
    def test_any_bits_of_any_dtype_and_shape(
        self, dtype: str, shape: tuple[int, ...], seed: int, codec: str
    ) -> None:
        tensor = tensor_of_bytes(DTYPES[dtype], shape, seed)
        assert_same(round_trip(tensor, codec=codec), tensor)

    @examples
    @given(
        st.sampled_from(
            [(2, 5, 4, 1), (1, 4, 5, 3), (3, 2, 2, 4), (2, 5, 4, 2), (2, 9, 7), (9, 9)]
        ),
        st.sampled_from(["uint8", "float32"]),
        st.integers(0, 2**32),
        st.sampled_from(CODECS),
    )
    def test_images_and_masks(
        self, shape: tuple[int, ...], dtype: str, seed: int, codec: str
    ) -> None:
        levels = tensor_of_bytes(torch.uint8, shape, seed)
        tensor = levels if dtype == "uint8" else levels.float() / 255.0
        payload = encode(tensor, codec=codec)
        assert_same(decode(payload_bytes(payload)), tensor)
        assert payload.codec in (codec, "raw")
        if dtype == "float32" and codec == "raw8":
            assert payload.codec == "raw8"

    @examples
    @given(
        st.sampled_from(SPEC_DTYPES),
        shapes,
        st.integers(0, 2**32),
        st.sampled_from(CODECS),
    )
    def test_special_values_that_compress(
        self, dtype: str, shape: tuple[int, ...], seed: int, codec: str
    ) -> None:
        """Random bits never do, and then all codecs send them raw."""
        specials = special_values(DTYPES[dtype], seed)
        chosen = np.random.default_rng(seed).integers(0, len(specials), (37, *shape))
        tensor = specials[torch.from_numpy(np.sort(chosen, axis=None).reshape(37, *shape))]
        assert_same(round_trip(tensor, codec=codec), tensor)

    @pytest.mark.parametrize("codec", CODECS)
    @pytest.mark.parametrize("dtype", SPEC_DTYPES)
    def test_every_codec_makes_special_values_smaller_that_can(
        self, dtype: str, codec: str
    ) -> None:
        specials = special_values(DTYPES[dtype], seed=6)
        tensor = specials.repeat(15_000)[:30_000].reshape(3, 100, 100)
        payload = encode(tensor, codec=codec)
        assert_same(decode(payload_bytes(payload)), tensor)
        if codec in ("lz4", "zstd"):
            assert payload.codec == codec and payload.size < tensor.nbytes / 3

    @examples
    @given(
        st.sampled_from(SPEC_DTYPES),
        st.integers(0, 2**32),
        st.sampled_from(CODECS),
        st.data(),
    )
    def test_any_strides(self, dtype: str, seed: int, codec: str, data: st.DataObject) -> None:
        tensor = tensor_of_bytes(DTYPES[dtype], (4, 5, 6), seed)
        views = {
            "transposed": tensor.permute(2, 0, 1),
            "stepped": tensor[::2, 1::3],
            "offset": tensor[1:, 2:, 3:],
            "selected": tensor[:, 2],
            "expanded": tensor[:1].expand(3, 5, 6),
            "expanded far": tensor[:, :, :1].expand(4, 5, 70),
            "scalar": tensor[0, 0, 0],
            "overlapping": tensor.as_strided((3, 3), (1, 1)),
        }
        view = views[data.draw(st.sampled_from(sorted(views)))]
        assert_same(round_trip(view, codec=codec), view)

    @pytest.mark.parametrize("value", [-0.0, math.nan, 1 + 1e-7, 256 / 255])
    def test_one_value_that_is_no_level_makes_an_image_raw(self, value: float) -> None:
        image = torch.zeros(2, 64, 64, 3)
        assert encode(image).codec == "png"
        image[1, 63, 63, 2] = value
        payload = encode(image)
        assert payload.codec == "raw"
        assert_same(decode(payload_bytes(payload)), image)

    @pytest.mark.parametrize("codec", CODECS)
    def test_photograph_in_every_codec(self, photograph: Levels, codec: str) -> None:
        image = photo_tensor(photograph)
        payload = encode(image, codec=codec)
        can_hold = codec != "raw" and not (codec == "webp" and image.shape[-1] == 1)
        assert payload.codec == (codec if can_hold else "raw")
        assert payload.holds_levels == can_hold
        assert_same(decode(payload_bytes(payload)), image)
        assert payload.size < image.nbytes / 3 or not can_hold

    def test_photograph_as_image_and_with_noise(self, photograph: Levels) -> None:
        image = photo_tensor(photograph)
        payload = encode(image)
        assert payload.codec == "png" and payload.size < image.nbytes / 4
        assert_same(decode(payload_bytes(payload)), image)
        noisy = image + 1e-3 * torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
        assert_same(round_trip(noisy), noisy)

    def test_batch_keeps_its_order(self) -> None:
        batch = torch.arange(5, dtype=torch.float32).reshape(5, 1, 1, 1).expand(5, 16, 16, 3) / 255
        payload = encode(batch)
        assert payload.codec == "png"
        assert_same(decode(payload_bytes(payload)), batch)

    def test_tensor_with_gradient_or_negative_bit(self) -> None:
        tensor = torch.randn(3, 3, requires_grad=True)
        assert_same(round_trip(tensor), tensor)
        strided = torch.randn(4, dtype=torch.complex64).conj().imag
        for negative in (strided, torch._neg_view(torch.randn(4))):
            assert negative.is_neg()
            assert_same(round_trip(negative), negative.resolve_neg())

    def test_one_element_of_any_stride(self) -> None:
        row = torch.rand(1, 4, generator=torch.Generator().manual_seed(6))
        for codec in CODECS:
            assert_same(round_trip(row[:, 2], codec=codec), torch.tensor([row[0, 2].item()]))

    def test_inference_mode(self) -> None:
        with torch.inference_mode():
            image = torch.ones(1, 32, 32, 3)
            assert_same(round_trip(image), image)
            assert_same(round_trip(image * 0.3), image * 0.3)

    def test_bool_with_other_bytes_than_0_and_1_is_made_sound(self) -> None:
        odd = torch.tensor([0, 1, 2, 255], dtype=torch.uint8).view(torch.bool)
        assert round_trip(odd).tolist() == [False, True, True, True]

    def test_zero_size_and_large_other_dimensions(self) -> None:
        empty = torch.empty(0, 1 << 30, 4)
        assert_same(round_trip(empty), empty)

    def test_noise_that_png_cannot_make_smaller_is_raw(self) -> None:
        noise = tensor_of_bytes(torch.uint8, (2, 64, 64, 3), seed=3)
        assert encode(noise).codec == "raw"
        assert encode(torch.zeros(4, 1, 1, 3)).codec == "raw"


class TestZeroCopy:
    def test_body_is_the_tensors_memory(self) -> None:
        tensor = torch.randn(100)
        payload = encode(tensor)
        tensor[0] = 7.0
        assert decode(payload_bytes(payload))[0] == 7.0
        assert len(payload.prefix) % 64 == 0

    def test_body_keeps_the_memory_alive(self) -> None:
        payload = encode(torch.full((50_000,), 0.3))
        gc.collect()
        assert decode(payload_bytes(payload)).sum() == torch.full((50_000,), 0.3).sum()

    @pytest.mark.parametrize("dtype", ["bfloat16", "float64", "int16", "bool"])
    def test_decoded_tensor_is_a_writable_view(self, dtype: str) -> None:
        tensor = tensor_of_bytes(DTYPES[dtype], (6, 7), seed=5)
        data = payload_bytes(encode(tensor))
        decoded = decode(memoryview(data))
        data[-tensor.nbytes :] = bytes(tensor.nbytes)
        assert not octets(decoded).strip(b"\0")
        decoded.fill_(1)
        assert data[-decoded.itemsize :] != bytes(decoded.itemsize)

    def test_decoded_tensor_keeps_the_memory_alive(self) -> None:
        class Memory(bytearray):
            """A bytearray that can be watched."""

        data = Memory(payload_bytes(encode(torch.arange(1000))))
        watch = weakref.ref(data)
        decoded = decode(memoryview(data))
        del data
        gc.collect()
        assert watch() is not None and decoded.tolist() == list(range(1000))
        del decoded
        gc.collect()
        assert watch() is None

    def test_read_only_memory_is_copied_without_a_warning(self) -> None:
        data = bytes(payload_bytes(encode(torch.arange(9))))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            decoded = decode(data)
        decoded[0] = 5
        assert decode(data).tolist() == list(range(9))

    @pytest.mark.parametrize("offset", range(9))
    def test_memory_that_is_not_aligned(self, offset: int) -> None:
        tensor = torch.randn(33, dtype=torch.float64)
        data = bytearray(offset) + payload_bytes(encode(tensor))
        decoded = decode(memoryview(data)[offset:])
        assert_same(decoded, tensor)
        assert decoded.data_ptr() % 8 == 0


class TestUint8Precision:
    @pytest.mark.parametrize("shape", [(2, 8, 9, 4), (1, 8, 9, 3), (2, 8, 9, 1), (3, 8, 9), (8, 9)])
    @pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
    def test_images_are_rounded_and_keep_dtype_and_shape(
        self, shape: tuple[int, ...], dtype: str
    ) -> None:
        generator = torch.Generator().manual_seed(2)
        image = (torch.rand(shape, generator=generator) * 1.4 - 0.2).to(DTYPES[dtype])
        payload = encode(image, precision="uint8", is_image=True)
        decoded = decode(payload_bytes(payload))
        assert payload.codec in ("png", "raw")
        assert (decoded.shape, decoded.dtype) == (image.shape, image.dtype)
        tolerance = 0.5 / 255 + torch.finfo(image.dtype).eps
        assert (decoded.double() - image.double().clamp(0, 1)).abs().max() <= tolerance

    def test_alpha_is_kept_and_nan_becomes_0(self) -> None:
        image = torch.tensor([[[[0.1, math.nan, 2.0, 0.5]]]])
        decoded = round_trip(image, precision="uint8", is_image=True)
        assert (decoded * 255).round().flatten().tolist() == [26, 0, 255, 128]

    def test_forced_raw_sends_the_rounded_values(self) -> None:
        image = torch.rand(1, 8, 8, 3, generator=torch.Generator().manual_seed(3))
        payload = encode(image, codec="raw", precision="uint8", is_image=True)
        assert payload.codec == "raw"
        expected = round_trip(image, precision="uint8", is_image=True)
        assert_same(decode(payload_bytes(payload)), expected)

    @pytest.mark.parametrize("shape", [(2, 4, 64, 64), (2, 16, 8, 8, 8), (2, 4, 8, 3)])
    def test_what_is_not_called_an_image_stays_exact(self, shape: tuple[int, ...]) -> None:
        latent = torch.randn(shape, generator=torch.Generator().manual_seed(4))
        assert_same(round_trip(latent, precision="uint8"), latent)

    def test_images_of_other_channel_counts_are_rounded_too(self) -> None:
        image = torch.rand(1, 8, 8, 2, generator=torch.Generator().manual_seed(5))
        for codec in CODECS:
            found = round_trip(image, codec=codec, precision="uint8", is_image=True)
            assert_same(found, (image * 255).round() / 255)


class TestChoices:
    def test_codec_and_precision_settings_are_the_choices_here(self) -> None:
        assert [str(codec) for codec in config.Codec] == ["auto", *CODECS]
        assert {str(precision) for precision in config.ImagePrecision} == set(PRECISION_CHOICES)
        image = torch.ones(1, 32, 32, 3)
        assert encode(image, codec=config.Codec.PNG).codec == "png"

    def test_unknown_codec_names_the_choices(self) -> None:
        with pytest.raises(
            ConfigError, match="'jpeg' is unknown: choose one of raw, raw8, bitpack"
        ):
            encode(torch.zeros(1), codec="jpeg")
        with pytest.raises(ConfigError, match="'half' is unknown: choose one of exact, uint8"):
            encode(torch.zeros(1), precision="half")

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (np.zeros(3), "ndarray: it is not a torch.Tensor"),
            (torch.zeros(2, dtype=torch.complex64), "cannot encode dtype torch.complex64"),
            (torch.zeros(2, 2).to_sparse(), "only dense tensors"),
            (torch.zeros(2, device="meta"), "only dense tensors"),
            (torch.zeros([1] * 9), "9 dimensions, the limit is 8"),
        ],
        ids=["ndarray", "complex", "sparse", "meta", "dimensions"],
    )
    def test_unsupported_tensor_says_why(self, value: Any, text: str) -> None:
        with pytest.raises(UnsupportedTensor, match=text):
            encode(value)


class TestForeignPayloads:
    """Payloads built by msgpack alone."""

    def payload(self, **change: Any) -> bytes:
        fields = {"shape": [2, 3], "dtype": "int16", "data": bytes(12), "compressed": False}
        packed: bytes = msgpack.packb({**fields, **change})
        return packed

    def test_plain_msgpack_is_read(self) -> None:
        assert_same(decode(self.payload()), torch.zeros(2, 3, dtype=torch.int16))

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"dtype": "object"}, "unknown dtype 'object'"),
            ({"dtype": "float33"}, "unknown dtype"),
            ({"data": bytes(11)}, "11 bytes of data"),
            ({"data": b""}, "0 bytes of data"),
            ({"shape": [2, 4]}, "12 bytes of data"),
            ({"shape": [1 << 62, 1 << 62]}, "too large to address"),
            ({"shape": [0, 1 << 63], "data": b""}, "too large to address"),
            ({"shape": [12], "dtype": "bool", "data": b"\x02" * 12}, "neither 0 nor 1"),
        ],
    )
    def test_wrong_payload_says_why(self, change: dict[str, Any], text: str) -> None:
        with pytest.raises(CorruptPayload, match=text):
            decode(self.payload(**change))

    @pytest.mark.parametrize(
        ("shape", "dtype", "images", "text"),
        [
            ([1, 4, 4, 2], "uint8", [SIGNATURE + b"x" * 99], "PNG holds no image of shape"),
            ([1, 4, 4, 3, 1], "uint8", [b"x" * 99], "cannot hold 8-bit images"),
            ([0, 4, 4, 3], "uint8", [], "cannot hold 8-bit images"),
            ([1, 4, 4, 3], "int16", [b"x" * 99], "cannot hold 8-bit images"),
            ([2, 4, 4, 3], "uint8", [b"x" * 99], "1 images for 2 items"),
            ([1, 4, 4, 3], "uint8", [b"RIFFWEBP" * 9], "not of the simple lossless form"),
            ([1, 4, 4, 3], "uint8", [b"JPEGJPEG" * 9], "unknown image format b'JPEGJPEG'"),
        ],
    )
    def test_wrong_images_say_why(
        self, shape: list[int], dtype: str, images: list[bytes], text: str
    ) -> None:
        fields = {"shape": shape, "dtype": dtype, "images": images, "compressed": True}
        with pytest.raises(CorruptPayload, match=text):
            decode(msgpack.packb(fields))

    def test_size_limit_bounds_the_decoded_image(self) -> None:
        data = payload_bytes(encode(torch.zeros(1, 100, 100, 3)))
        assert decode(data, size_limit=120_000).shape == (1, 100, 100, 3)
        with pytest.raises(CorruptPayload, match="120000 bytes, 119999 allowed"):
            decode(data, size_limit=119_999)
