from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from comfy_cluster.config import ClusterConfig
from comfy_cluster.errors import ConfigError
from comfy_cluster.protocol import ProtocolSettings
from comfy_cluster.wire import InstanceRole
from tests.unit.protocol.fake_engine import settings_of


def test_settings_come_from_the_configuration() -> None:
    config = ClusterConfig.static(1, [("10.0.0.1", 1), ("10.0.0.2", 2)])
    config = replace(config, memory_budget=1 << 28)
    settings = ProtocolSettings.from_config(config, boot_id=5, engine_name="fake", version="1.2")
    assert (settings.instance_index, settings.instance_count, settings.boot_id) == (1, 2, 5)
    assert settings.own_role is InstanceRole.FOLLOWER
    assert settings.memory_budget == 1 << 28
    assert settings.message_timeout == (1 + config.max_retries) * config.ack_timeout


@pytest.mark.parametrize(
    "options",
    [
        {"instance_index": 2},
        {"instance_index": -1},
        {"instance_count": 5_000},
        {"heartbeat_interval": 0.0},
        {"ack_timeout": -1.0},
        {"memory_budget": 0},
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        settings_of(**options)


def test_large_packets_only_where_the_path_is_known_to_carry_them() -> None:
    settings = settings_of(loopback_packet_size=9_000)
    assert settings.packet_size_to(("127.0.0.1", 9998), 65_507) == 9_000
    assert settings.packet_size_to(("::1", 9998), 65_507) == 9_000
    assert settings.packet_size_to(("::ffff:127.0.0.1", 9998), 65_507) == 9_000
    assert settings.packet_size_to(("::ffff:192.168.1.2", 9998), 65_507) == 1_200
    assert settings.packet_size_to(("192.168.1.2", 9998), 65_507) == 1_200
    assert settings.packet_size_to(("gpu-2.example", 9998), 65_507) == 1_200


def test_packets_are_no_larger_than_the_peer_can_receive() -> None:
    settings = settings_of(loopback_packet_size=9_000)
    assert settings.packet_size_to(("127.0.0.1", 9998), 1_500) == 1_500
    assert settings.packet_size_to(("127.0.0.1", 9998), 1_200) == 1_200
