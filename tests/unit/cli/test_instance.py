"""The settings that the demo gives to its instances."""

from __future__ import annotations

from comfy_cluster.cli.instance import Traffic, free_ports, instance_environ, traffic_of
from comfy_cluster.config import ClusterConfig, Codec, RegistrationMode, Role
from comfy_cluster.runtime import build_cluster

PORTS = [5001, 5002, 5003]


def test_the_settings_make_one_static_cluster_on_loopback() -> None:
    configs = [
        ClusterConfig.from_env(instance_environ({}, index, ports=PORTS, cluster_id="demo-1"))
        for index in range(3)
    ]
    assert [config.role for config in configs] == [Role.LEADER, Role.FOLLOWER, Role.FOLLOWER]
    assert [config.direct_listen_port for config in configs] == PORTS
    for config in configs:
        assert config.registration_mode is RegistrationMode.STATIC
        assert config.listen_address == "127.0.0.1"
        assert config.min_instances == config.instance_count == 3
        assert config.cluster_id == "demo-1"


def test_what_the_user_has_set_holds_unless_it_says_where_an_instance_is() -> None:
    environ = {
        "PATH": "/bin",
        "COMFY_CLUSTER_CODEC": "raw",
        "COMFY_CLUSTER_INSTANCE_INDEX": "9",
        "COMFY_CLUSTER_REGISTRATION_MODE": "stun",
        "COMFY_CLUSTER_KEY": "0123456789abcdef",
        "COMFY_CLUSTER_MIN_INSTANCES": "1",
    }
    made = instance_environ(environ, 1, ports=PORTS, cluster_id="demo-1")
    assert made["PATH"] == "/bin"
    config = ClusterConfig.from_env(made)
    assert config.codec is Codec.RAW
    assert (config.instance_index, config.min_instances, config.key) == (1, 3, None)


def test_ports_differ_from_each_other() -> None:
    ports = free_ports(8)
    assert len(set(ports)) == 8
    assert all(port > 1023 for port in ports)


def test_a_cluster_of_one_has_no_traffic() -> None:
    environ = instance_environ({}, 0, ports=[5001], cluster_id="demo-1")
    with build_cluster(ClusterConfig.from_env(environ)) as cluster:
        assert traffic_of(cluster) == Traffic()
    assert Traffic(9, 8, 7) - Traffic(1, 2, 3) == Traffic(8, 6, 4)
