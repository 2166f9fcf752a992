"""What encoding a tensor may cost in memory, before it is done."""

from __future__ import annotations

import pytest
import torch

from comfy_cluster import codec
from comfy_cluster.cluster.payloads import encoding_cost


def test_raw_forms_of_plain_tensors_cost_nothing() -> None:
    assert encoding_cost(torch.zeros(9, 9, 9, 3), codec_name="raw") == 0
    assert encoding_cost(torch.zeros(9, dtype=torch.int64), codec_name="auto") == 0
    assert encoding_cost(torch.zeros(0, 9, 9, 3), codec_name="auto") == 0
    assert encoding_cost(torch.tensor(1.0), codec_name="auto") == 0


def test_a_tensor_that_must_be_copied_costs_its_size() -> None:
    tensor = torch.zeros(4, 8, dtype=torch.int64).T
    assert encoding_cost(tensor, codec_name="auto") == tensor.nbytes


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_images_cost_about_what_they_become(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    levels = torch.randint(0, 256, (2, 32, 32, 3), generator=generator)
    image = levels.to(dtype) if dtype == torch.uint8 else levels.to(dtype) / 255.0
    cost = encoding_cost(image, codec_name="auto")
    assert codec.encode(image, codec="png").size <= cost * 1.1
