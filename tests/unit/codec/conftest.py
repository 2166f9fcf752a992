"""Real photographs for the codec's tests."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data

from comfy_cluster.codec.levels import Levels

PHOTOGRAPHS = ("astronaut", "coffee", "camera")


@pytest.fixture(params=PHOTOGRAPHS)
def photograph(request: pytest.FixtureRequest) -> Levels:
    """Levels [H, W, C] of a photograph that scikit-image ships: two in colour, one gray."""
    levels: Levels = getattr(skimage.data, request.param)()
    return np.atleast_3d(levels)
