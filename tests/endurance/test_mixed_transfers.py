"""All four collectives at once over links that lose packets: nothing differs, nothing is kept.

CLUSTER_ENDURANCE_SECONDS is for how long, instead of 20. For hours there is
`python -m benchmarks.endurance`.
"""

from __future__ import annotations

import os

import pytest

from benchmarks.endurance import run
from benchmarks.netlab import why_unavailable

SECONDS = float(os.environ.get("CLUSTER_ENDURANCE_SECONDS", "20"))
LOSS = 0.01

pytestmark = pytest.mark.integration


def test_mixed_transfers_under_loss_stay_right_and_keep_nothing() -> None:
    reason = why_unavailable()
    if reason is not None:
        pytest.skip(reason)
    endurance = run(seconds=SECONDS, loss=LOSS)
    print(endurance.reports)
    assert endurance.troubles() == []
    assert endurance.rounds >= 4, "too few to tell quarters apart"
    assert endurance.lost_packets > 0
    assert [each["connections_lost"] for each in endurance.reports] == [0, 0, 0]
