"""The composition root: settings become a cluster."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
import torch

from comfy_cluster import runtime
from comfy_cluster.cluster import CollectiveKey, InstanceState
from comfy_cluster.config import ClusterConfig, RegistrationMode
from comfy_cluster.discovery import StaticDiscovery
from comfy_cluster.discovery.broadcast import BroadcastDiscovery
from comfy_cluster.discovery.stun import StunDiscovery
from comfy_cluster.errors import ConfigError


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No cluster variable is set, and no cluster is left over."""
    for name in list(os.environ):
        if name.startswith("COMFY_CLUSTER_") and name not in (
            "COMFY_CLUSTER_PURE_PYTHON",
            "COMFY_CLUSTER_REQUIRE_FASTPATH",
        ):
            monkeypatch.delenv(name)
    yield
    runtime.close_cluster()


def test_without_settings_there_is_a_cluster_of_one_made_once() -> None:
    before = threading.enumerate()
    cluster = runtime.get_cluster()
    assert runtime.get_cluster() is cluster
    assert cluster.instance_count == 1 and cluster.is_leader
    assert cluster.state is InstanceState.IDLE
    tensor = torch.zeros(1)
    assert cluster.fan_out(CollectiveKey("job", "1"), tensor).result(0) is tensor
    assert threading.enumerate() == before


def test_a_wrong_setting_is_an_error_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFY_CLUSTER_INSTANCE_COUNT", "2")
    for _ in range(2):
        with pytest.raises(ConfigError, match="Missing required environment variable"):
            runtime.get_cluster()
    monkeypatch.delenv("COMFY_CLUSTER_INSTANCE_COUNT")
    assert runtime.get_cluster().instance_count == 1


def test_closing_makes_room_for_a_new_cluster() -> None:
    first = runtime.get_cluster()
    runtime.close_cluster()
    runtime.close_cluster()
    assert runtime.get_cluster() is not first


def test_static_mode_gets_its_discovery() -> None:
    config = ClusterConfig.static(0, [("127.0.0.1", 9998), ("127.0.0.1", 9999)])
    assert isinstance(runtime.build_discovery(config), StaticDiscovery)


@pytest.mark.parametrize(
    ("mode", "discovery"),
    [
        (RegistrationMode.BROADCAST, BroadcastDiscovery),
        (RegistrationMode.STUN, StunDiscovery),
    ],
)
def test_each_mode_has_its_way_to_find_the_others(mode: RegistrationMode, discovery: type) -> None:
    config = ClusterConfig(
        instance_count=2,
        min_instances=2,
        registration_mode=mode,
        stun_servers=("http://127.0.0.1:1",),
        key="k" * 16,
    )
    assert type(runtime.build_discovery(config)) is discovery


def test_building_a_cluster_opens_nothing() -> None:
    before = threading.enumerate()
    config = ClusterConfig.static(1, [("127.0.0.1", 1), ("127.0.0.1", 2)])
    cluster = runtime.build_cluster(config)
    assert cluster.state is InstanceState.INITIALIZE
    assert threading.enumerate() == before
    cluster.close()
