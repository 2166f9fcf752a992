"""The proof that two ends of a Unix socket are the two peers of one connection."""

from __future__ import annotations

from dataclasses import replace

import pytest

from comfy_cluster.protocol import PeerProof
from comfy_cluster.transport.shared_memory.proof import Tags, are_equal, name_of

CONNECTOR_BOOT, LISTENER_BOOT = 7, 9
AT_CONNECTOR = PeerProof(boot_id=LISTENER_BOOT, local_session=0xAAAA, remote_session=0xBBBB)
AT_LISTENER = PeerProof(boot_id=CONNECTOR_BOOT, local_session=0xBBBB, remote_session=0xAAAA)


def test_both_sides_of_one_connection_expect_the_same() -> None:
    tags = Tags.for_connector(AT_CONNECTOR, own_boot_id=CONNECTOR_BOOT)
    assert tags == Tags.for_listener(AT_LISTENER, own_boot_id=LISTENER_BOOT)
    assert not are_equal(tags.connector, tags.listener)  # no side can send the other's back


@pytest.mark.parametrize(
    "other",
    [
        replace(AT_CONNECTOR, local_session=0xAAAB),
        replace(AT_CONNECTOR, remote_session=0xBBBC),
        replace(AT_CONNECTOR, boot_id=10),
        replace(AT_CONNECTOR, local_session=0xBBBB, remote_session=0xAAAA),
    ],
)
def test_any_other_connection_has_other_tags(other: PeerProof) -> None:
    tags = Tags.for_connector(AT_CONNECTOR, own_boot_id=CONNECTOR_BOOT)
    wrong = Tags.for_connector(other, own_boot_id=CONNECTOR_BOOT)
    assert not are_equal(tags.connector, wrong.connector)
    assert not are_equal(tags.listener, wrong.listener)


def test_names_are_abstract_and_of_one_boot() -> None:
    assert name_of(0xAB) == b"\0comfy-cluster-00000000000000ab"
