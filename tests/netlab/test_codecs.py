"""The codecs on a link of the lab."""

from __future__ import annotations

import json

import pytest

from benchmarks.netlab.codecs import main
from comfy_cluster.benchmarks.rows import ROWS

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("needs_lab")]

LINK = ("--rate", "20mbit", "--rtt-ms", "1")
SMALL = ("--side", "128", "--batch-size", "2", "--rounds", "1", "--tensor", "batch", "noisy")


def test_every_codec_crosses_a_link_and_less_of_it_is_sent(
    capsys: pytest.CaptureFixture[str],
) -> None:
    if ROWS["codecs"].missing is not None:
        pytest.skip(ROWS["codecs"].missing)
    main([*LINK, *SMALL, "--codec", "raw", "png", "auto", "--json"])
    batch, noisy = json.loads(capsys.readouterr().out)["tables"]
    assert batch["title"].endswith("20mbit, RTT 1 ms, MTU 1500")
    assert (batch["shape"], noisy["shape"]) == ([2, 128, 128, 3], [1, 128, 128, 3])
    for table in (batch, noisy):
        codecs = {each["codec"]: each for each in table["codecs"]}
        assert list(codecs) == ["raw", "png", "auto"]
        assert all(each["is_checked"] for each in codecs.values())
        assert codecs["raw"]["sent_bytes"] > table["tensor_bytes"]
    sent = {each["codec"]: each["sent_bytes"] for each in batch["codecs"]}
    assert sent["png"] < sent["raw"] / 2
    assert sent["auto"] < sent["raw"], "raw would take 160 ms"
