"""Values of ComfyUI's links, compared bit for bit."""

from __future__ import annotations

import torch


def assert_same(found: object, expected: object) -> None:
    """Equal in every bit, dtypes, shapes and keys included."""
    assert type(found) is type(expected)
    if isinstance(found, torch.Tensor) and isinstance(expected, torch.Tensor):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert torch.equal(found, expected)
    elif isinstance(found, dict) and isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in found:
            assert_same(found[key], expected[key])
    elif isinstance(found, list) and isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected
