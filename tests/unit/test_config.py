"""Settings: every variable, its default, and the text of every error."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
from pathlib import Path

import pytest

from comfy_cluster import config as config_module
from comfy_cluster import identity
from comfy_cluster.config import (
    ENGINE_VARIABLES,
    SETTING_VARIABLES,
    ClusterConfig,
    Codec,
    EngineChoice,
    ImagePrecision,
    InstanceAddress,
    LogLevel,
    OnLost,
    RegistrationMode,
    Role,
    SharedMemory,
    engine_choice,
    role_of,
)
from comfy_cluster.errors import ConfigError
from comfy_cluster.settings_values import SETTINGS

ROOT = Path(__file__).resolve().parents[2]
KEY = "0123456789abcdef-secret"
STATIC = {
    "INSTANCE_COUNT": "2",
    "INSTANCE_INDEX": "0",
    "ROLE": "LEADER",
    "REGISTRATION_MODE": "static",
    "UDP_HOSTNAMES": "10.0.0.1:9998,10.0.0.2:9999",
}
BROADCAST = {
    "INSTANCE_COUNT": "4",
    "INSTANCE_INDEX": "3",
    "ROLE": "FOLLOWER",
    "REGISTRATION_MODE": "broadcast",
}
STUN = BROADCAST | {
    "REGISTRATION_MODE": "stun",
    "STUN_SERVER": "https://stun.example.com/",
    "CLUSTER_ID": "studio-7",
    "KEY": KEY,
}

INVALID_VALUES = [
    ("INSTANCE_COUNT", "0"),
    ("INSTANCE_COUNT", "two"),
    ("INSTANCE_COUNT", "65536"),
    ("INSTANCE_INDEX", "-1"),
    ("ROLE", "WORKER"),
    ("REGISTRATION_MODE", "dns"),
    ("STUN_SERVER", "stun.example.com"),
    ("STUN_SERVER", "ftp://stun.example.com"),
    ("STUN_SERVER", "https://a.example.com,"),
    ("STUN_SERVER", "https://a.example.com:port"),
    ("CLUSTER_ID", "a/b"),
    ("CLUSTER_ID", "x" * 129),
    ("LISTEN_ADDRESS", "localhost"),
    ("LISTEN_ADDRESS", "[10.0.0.1]"),
    ("INSTANCE_ADDRESS", "10.0.0.1:9998"),
    ("INSTANCE_ADDRESS", "-bad-"),
    ("DIRECT_LISTEN_PORT", "0"),
    ("BROADCAST_PORT", "65536"),
    ("COMFY_PORT", "http"),
    ("UDP_BROADCAST", "maybe"),
    ("SINGLE_HOST", "2"),
    ("UDP_HOSTNAMES", "10.0.0.1,10.0.0.2"),
    ("UDP_HOSTNAMES", "::1:9998,::2:9998"),
    ("UDP_HOSTNAMES", "10.0.0.1:9998,a..b:9998"),
    ("UDP_HOSTNAMES", "10.0.0.1:9998," + "a" * 64 + ".lan:9998"),
    ("UDP_HOSTNAMES", "10.0.0.1:9998,.lan:9998"),
    ("UDP_HOSTNAMES", "10.0.0.1:9998"),
    ("UDP_HOSTNAMES", "10.0.0.1:9998,10.0.0.1:9998"),
    ("BATCH_SIZE", "0"),
    ("BATCH_SIZE", "1025"),
    ("ACK_TIMEOUT", "0"),
    ("ACK_TIMEOUT", "nan"),
    ("ACK_TIMEOUT", "5s"),
    ("MAX_RETRIES", "-1"),
    ("LOG_LEVEL", "LOUD"),
    ("HOT_RELOAD", "y"),
    ("MIN_INSTANCES", "0"),
    ("MIN_INSTANCES", "3"),
    ("ON_LOST", "ignore"),
    ("HEARTBEAT_INTERVAL", "inf"),
    ("INSTANCE_TIMEOUT", "0.5"),
    ("MEMORY_BUDGET", "0"),
    ("MEMORY_BUDGET", "101%"),
    ("MEMORY_BUDGET", "4 parsecs"),
    ("MEMORY_BUDGET", "-1"),
    ("SHARED_MEMORY", "yes"),
    ("CODEC", "jpeg"),
    ("IMAGE_PRECISION", "low"),
    ("PURE_PYTHON", "perhaps"),
    ("REQUIRE_FASTPATH", "perhaps"),
]


def read(settings: dict[str, str], **changes: str) -> ClusterConfig:
    """The settings after `changes`, all named without the prefix."""
    variables = settings | changes
    return ClusterConfig.from_env({f"COMFY_CLUSTER_{name}": variables[name] for name in variables})


def error_of(settings: dict[str, str], **changes: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(settings, **changes)
    return caught.value


def test_no_variable_gives_a_cluster_of_one() -> None:
    config = ClusterConfig.from_env({"PATH": "/bin", "COMFY": "x"})
    assert config == ClusterConfig()
    assert config.is_single
    assert config.is_leader
    assert config.min_instances == 1


def test_blank_and_engine_variables_still_give_a_cluster_of_one() -> None:
    assert read({}, ROLE="", LOG_LEVEL="  ", PURE_PYTHON="1").is_single


def test_defaults_are_those_of_the_specification() -> None:
    config = read(BROADCAST)
    assert config.cluster_id == "default"
    assert config.key is None
    assert config.listen_address == "0.0.0.0"
    assert config.instance_address is None
    assert (config.direct_listen_port, config.broadcast_port) == (9998, 9997)
    assert config.comfy_port is None
    assert config.burst_size == 174
    assert (config.ack_timeout, config.max_retries) == (5.0, 3)
    assert config.log_level is LogLevel.INFO
    assert not config.hot_reload
    assert not config.single_host
    assert config.min_instances == 4
    assert config.on_lost is OnLost.REDO
    assert (config.heartbeat_interval, config.instance_timeout) == (0.5, 3.0)
    assert config.memory_budget == identity.total_memory() // 4
    assert config.shared_memory is SharedMemory.AUTO
    assert config.codec is Codec.AUTO
    assert config.image_precision is ImagePrecision.EXACT


def test_every_variable_is_read() -> None:
    config = read(
        STUN,
        LISTEN_ADDRESS="::",
        INSTANCE_ADDRESS="gpu-3.lan",
        DIRECT_LISTEN_PORT="7001",
        BROADCAST_PORT="7002",
        UDP_BROADCAST="yes",
        SINGLE_HOST="on",
        COMFY_PORT="8190",
        BATCH_SIZE="64",
        ACK_TIMEOUT="0.5",
        MAX_RETRIES="0",
        LOG_LEVEL="debug",
        HOT_RELOAD="TRUE",
        MIN_INSTANCES="2",
        ON_LOST="partial",
        HEARTBEAT_INTERVAL="1",
        INSTANCE_TIMEOUT="10",
        MEMORY_BUDGET="2GiB",
        SHARED_MEMORY="off",
        CODEC="raw",
        IMAGE_PRECISION="uint8",
    )
    assert config == ClusterConfig(
        instance_count=4,
        instance_index=3,
        role=Role.FOLLOWER,
        registration_mode=RegistrationMode.STUN,
        stun_servers=("https://stun.example.com",),
        cluster_id="studio-7",
        key=KEY,
        listen_address="::",
        instance_address="gpu-3.lan",
        direct_listen_port=7001,
        broadcast_port=7002,
        udp_broadcast=True,
        single_host=True,
        comfy_port=8190,
        burst_size=64,
        ack_timeout=0.5,
        max_retries=0,
        log_level=LogLevel.DEBUG,
        hot_reload=True,
        min_instances=2,
        on_lost=OnLost.PARTIAL,
        heartbeat_interval=1.0,
        instance_timeout=10.0,
        memory_budget=2 << 30,
        shared_memory=SharedMemory.OFF,
        codec=Codec.RAW,
        image_precision=ImagePrecision.UINT8,
    )


@pytest.mark.parametrize(
    ("settings", "variable"),
    [
        *((BROADCAST, name) for name in BROADCAST),
        *((STUN, name) for name in ("STUN_SERVER", "CLUSTER_ID", "KEY")),
        (STATIC, "UDP_HOSTNAMES"),
    ],
)
def test_missing_variable_is_named(settings: dict[str, str], variable: str) -> None:
    error = error_of(settings, **{variable: ""})
    assert str(error).startswith(
        f"Missing required environment variable COMFY_CLUSTER_{variable}: "
    )
    assert error.variable == f"COMFY_CLUSTER_{variable}"


def test_all_missing_variables_are_named_at_once() -> None:
    text = str(error_of({}, LOG_LEVEL="DEBUG"))
    assert text.startswith("Missing required environment variable COMFY_CLUSTER_INSTANCE_COUNT (")
    for name in ("INSTANCE_INDEX", "ROLE", "REGISTRATION_MODE"):
        assert f"COMFY_CLUSTER_{name}" in text


@pytest.mark.parametrize("index", ["2", "70000"])
def test_instance_index_past_the_count(index: str) -> None:
    error = error_of(STATIC, INSTANCE_INDEX=index)
    assert str(error).startswith(f"Instance index {index} exceeds instance count 2")


@pytest.mark.parametrize(("index", "role"), [("1", "LEADER"), ("0", "FOLLOWER")])
def test_role_must_fit_the_index(index: str, role: str) -> None:
    error = error_of(STATIC, INSTANCE_INDEX=index, ROLE=role)
    expected = role_of(int(index))
    assert f"COMFY_CLUSTER_ROLE='{role}'" in str(error)
    assert f"expected {expected} for instance index {index}" in str(error)


@pytest.mark.parametrize(("variable", "value"), INVALID_VALUES)
def test_invalid_value_is_named_with_what_was_expected(variable: str, value: str) -> None:
    error = error_of(STATIC, **{variable: value})
    assert f"COMFY_CLUSTER_{variable}='{value}'" in str(error)
    assert ": expected " in str(error)
    assert (error.variable, error.value) == (f"COMFY_CLUSTER_{variable}", value)


def test_every_variable_has_an_invalid_value_above() -> None:
    variables = {variable for variable, _ in INVALID_VALUES}
    assert variables | {"KEY"} == {*SETTING_VARIABLES, *ENGINE_VARIABLES}


@pytest.mark.parametrize("word", ["true", "1", "yes", "on", "True", "ON"])
def test_true_words(word: str) -> None:
    assert read(BROADCAST, SINGLE_HOST=word).single_host


@pytest.mark.parametrize("word", ["false", "0", "no", "off", "False", "NO"])
def test_false_words(word: str) -> None:
    assert not read(BROADCAST, UDP_BROADCAST=word).udp_broadcast


def test_broadcast_mode_announces_by_default() -> None:
    assert read(BROADCAST).udp_broadcast
    assert not read(STATIC).udp_broadcast


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("268435456", 268_435_456),
        ("1kb", 1000),
        ("1 KiB", 1024),
        ("1.5GiB", 3 << 29),
        ("2GB", 2_000_000_000),
        ("512mib", 512 << 20),
    ],
)
def test_memory_budget_units(text: str, size: int) -> None:
    assert read(BROADCAST, MEMORY_BUDGET=text).memory_budget == size


def test_memory_budget_as_a_share_of_the_memory() -> None:
    budget = read(BROADCAST, MEMORY_BUDGET="10%").memory_budget
    assert budget == pytest.approx(identity.total_memory() / 10, abs=1)


def test_static_addresses_with_ipv6_and_names() -> None:
    config = read(STATIC, UDP_HOSTNAMES=" [::1]:9998 , gpu_1.lan:7000")
    assert config.udp_hostnames == (
        InstanceAddress("::1", 9998),
        InstanceAddress("gpu_1.lan", 7000),
    )
    assert [str(address) for address in config.udp_hostnames] == ["[::1]:9998", "gpu_1.lan:7000"]


def test_longest_names_pass_and_a_name_that_cannot_be_is_named() -> None:
    longest = ".".join(["a" * 63] * 3 + ["b" * 61])
    config = read(STATIC, UDP_HOSTNAMES=f"{longest}:9998,x.{'c' * 63}.:9998")
    assert config.udp_hostnames[0] == InstanceAddress(longest, 9998)
    with pytest.raises(ConfigError, match=r"expected host:port .*; entry 1 \('a\.\.b:9998'\) is"):
        read(STATIC, UDP_HOSTNAMES="10.0.0.1:9998,a..b:9998")


def test_own_entry_gives_the_default_port_in_static_mode() -> None:
    follower = {"INSTANCE_INDEX": "1", "ROLE": "FOLLOWER"}
    assert read(STATIC, **follower).direct_listen_port == 9999
    assert read(STATIC, **follower, SINGLE_HOST="1").direct_listen_port == 9999
    assert read(STATIC, **follower, DIRECT_LISTEN_PORT="5000").direct_listen_port == 5000


def test_single_host_counts_ports_up() -> None:
    assert read(BROADCAST, SINGLE_HOST="1").direct_listen_port == 9998 + 3
    assert read(BROADCAST, SINGLE_HOST="1", DIRECT_LISTEN_PORT="7").direct_listen_port == 7


def test_more_instances_than_the_engine_has_peers_are_refused() -> None:
    assert "COMFY_CLUSTER_INSTANCE_COUNT='4097'" in str(error_of(BROADCAST, INSTANCE_COUNT="4097"))


def test_several_rendezvous_servers() -> None:
    config = read(STUN, STUN_SERVER="https://a.example.com/stun/, http://[::1]:8089")
    assert config.stun_servers == ("https://a.example.com/stun", "http://[::1]:8089")


@pytest.mark.parametrize(
    "key", ["too-short-secret"[:15], "with a blank in the middle", "ümlaut" * 5]
)
def test_refused_key_is_not_shown(key: str) -> None:
    error = error_of(STUN, KEY=key)
    assert str(error).startswith(f"Invalid COMFY_CLUSTER_KEY ({len(key)} characters): expected 16")
    assert key not in str(error)
    assert error.value is None


def test_key_is_not_shown() -> None:
    config = read(STUN)
    assert config.key == KEY
    assert KEY not in repr(config)
    assert KEY not in str(config)


def test_unknown_variable_suggests_the_nearest_and_hides_its_value() -> None:
    error = error_of(STUN, KEYS=KEY)
    assert str(error) == (
        "Unknown environment variable COMFY_CLUSTER_KEYS: did you mean COMFY_CLUSTER_KEY?"
    )
    assert error.value is None
    text = str(error_of({}, INSTANCE_CONT="2"))
    assert "did you mean COMFY_CLUSTER_INSTANCE_COUNT?" in text


def test_runpod_pod_is_kept_and_not_resolved() -> None:
    assert ClusterConfig.from_env({"RUNPOD_POD_ID": "abc123"}).runpod_pod_id == "abc123"
    environ = {f"COMFY_CLUSTER_{name}": BROADCAST[name] for name in BROADCAST}
    config = ClusterConfig.from_env(environ | {"RUNPOD_POD_ID": "abc123"})
    assert (config.runpod_pod_id, config.instance_address) == ("abc123", None)


def test_static_constructor_equals_the_environment() -> None:
    addresses = [("10.0.0.1", 9998), ("10.0.0.2", 9999)]
    assert ClusterConfig.static(0, addresses) == read(STATIC)
    assert ClusterConfig.static(1, addresses).role is Role.FOLLOWER
    with pytest.raises(ConfigError, match="Instance index 2 exceeds instance count 2"):
        ClusterConfig.static(2, addresses)


def test_contradictions_are_found_however_it_is_made() -> None:
    config = ClusterConfig.static(0, [("a", 1), ("b", 2)])
    for changes in ({"instance_index": 2}, {"instance_count": 3}, {"role": Role.FOLLOWER}):
        with pytest.raises(ConfigError):
            dataclasses.replace(config, **changes)


@pytest.mark.parametrize(
    ("variables", "choice"),
    [
        ({}, EngineChoice.AUTO),
        ({"PURE_PYTHON": "1"}, EngineChoice.PURE_PYTHON),
        ({"REQUIRE_FASTPATH": "yes"}, EngineChoice.REQUIRE_COMPILED),
        ({"REQUIRE_FASTPATH": "1", "PURE_PYTHON": "0"}, EngineChoice.REQUIRE_COMPILED),
    ],
)
def test_engine_choice(variables: dict[str, str], choice: EngineChoice) -> None:
    environ = {f"COMFY_CLUSTER_{name}": variables[name] for name in variables}
    assert engine_choice(environ) is choice


def test_engine_choices_contradict_each_other() -> None:
    environ = {f"COMFY_CLUSTER_{name}": "1" for name in ENGINE_VARIABLES}
    with pytest.raises(ConfigError, match="COMFY_CLUSTER_PURE_PYTHON"):
        engine_choice(environ)


def test_engine_choice_reads_this_process_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMFY_CLUSTER_REQUIRE_FASTPATH", raising=False)
    monkeypatch.setenv("COMFY_CLUSTER_PURE_PYTHON", "1")
    assert engine_choice() is EngineChoice.PURE_PYTHON


def test_every_field_has_a_variable_and_a_docstring() -> None:
    names = [item.name for item in dataclasses.fields(ClusterConfig)]
    assert {*SETTINGS, "runpod_pod_id"} == set(names)
    tree = ast.parse(inspect.getsource(config_module))
    classes = [item for item in tree.body if isinstance(item, ast.ClassDef)]
    (body,) = (item.body for item in classes if item.name == ClusterConfig.__name__)
    documented = [
        first.target.id
        for first, second in itertools.pairwise(body)
        if isinstance(first, ast.AnnAssign)
        and isinstance(first.target, ast.Name)
        and isinstance(second, ast.Expr)
    ]
    assert documented == names


def test_readme_lists_every_variable() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.split("<!-- settings -->")[1]
    listed = [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")]
    assert sorted(listed) == sorted((*SETTING_VARIABLES, *ENGINE_VARIABLES))
