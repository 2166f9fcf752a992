"""What codecs make of the tensors of the row `codecs`: real photographs, masks, latents."""

from __future__ import annotations

import pytest
import torch

from comfy_cluster.benchmarks.errors import BenchmarkError
from comfy_cluster.benchmarks.form_rounds import make_specimen, measure_forms, same_bits
from comfy_cluster.benchmarks.forms import Specimen, other_specimens, photograph_specimens
from comfy_cluster.benchmarks.photographs import DISTRIBUTION, PACKAGE, PHOTOGRAPHS, levels_of
from comfy_cluster.benchmarks.rows import ROWS
from comfy_cluster.benchmarks.transfers import Content
from comfy_cluster.codec.image_codecs import available_codecs

SIDE = 128

pytestmark = pytest.mark.skipif(
    ROWS["codecs"].missing is not None, reason=str(ROWS["codecs"].missing)
)


def test_photographs_are_there_without_a_download() -> None:
    pictures = [levels_of(name, SIDE) for name in PHOTOGRAPHS]
    assert {each.shape for each in pictures} == {(SIDE, SIDE, 3)}
    assert len({each.tobytes() for each in pictures}) == len(PHOTOGRAPHS) >= 8
    assert all(len(set(each.flatten().tolist())) > 100 for each in pictures)


def test_without_scikit_image_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BenchmarkError, match="pip install scikit-image"):
        levels_of("astronaut", SIDE)
    assert ROWS["codecs"].needs == (PACKAGE, DISTRIBUTION)


def test_specimens_have_the_shapes_that_nodes_send() -> None:
    for specimen in (*photograph_specimens(SIDE), *other_specimens(SIDE)):
        tensor = make_specimen(specimen)
        assert tuple(tensor.shape) == specimen.shape
        assert str(tensor.dtype) == f"torch.{specimen.dtype}"
        assert same_bits(tensor, make_specimen(specimen)), "every run must measure the same"
    assert len({tuple(make_specimen(each).flatten()[:64].tolist()) for each in MADE}) == len(MADE)


MADE = [each for each in other_specimens(SIDE) if each.dtype == "float32"]


@pytest.mark.parametrize(
    "specimen",
    [photograph_specimens(SIDE)[0], *other_specimens(SIDE)],
    ids=lambda specimen: str(specimen.name),
)
def test_every_codec_gives_the_same_bits_back(specimen: Specimen) -> None:
    forms = measure_forms(specimen, available_codecs(), rounds=2)
    assert [form.codec for form in forms] == list(available_codecs())
    assert all(form.is_exact for form in forms)
    assert all(form.taken in (form.codec, "raw") for form in forms)
    assert all(len(form.encoded) == len(form.decoded) == 2 for form in forms)
    assert all(0 < form.payload_size <= 1.1 * form.tensor_size for form in forms)


def test_an_8_bit_photograph_takes_each_codec_s_own_form() -> None:
    forms = measure_forms(photograph_specimens(SIDE)[0], available_codecs(), rounds=1)
    assert [form.taken for form in forms] == list(available_codecs())
    ratios = {form.codec: form.ratio for form in forms}
    assert ratios["raw"] < 1.0 < 3.5 < ratios["raw8"] < ratios["png"]


def test_noise_makes_a_photograph_no_8_bit_image() -> None:
    noisy = next(each for each in MADE if each.content is Content.NOISY_PHOTOGRAPH)
    forms = {form.codec: form for form in measure_forms(noisy, ["raw8", "png"], rounds=1)}
    assert {form.taken for form in forms.values()} == {"raw"}


def test_bits_are_compared_and_not_values() -> None:
    zeros = torch.zeros(4)
    assert not same_bits(zeros, -zeros)
    assert not same_bits(zeros, zeros.reshape(2, 2))
    assert not same_bits(zeros, zeros.to(torch.float64))
    nothing = torch.full((4,), float("nan"))
    assert same_bits(nothing, nothing.clone())
