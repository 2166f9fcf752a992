"""The server's settings and their errors."""

from __future__ import annotations

import pytest

from stun_server.settings import RegistrySettings, SettingsError


def test_defaults() -> None:
    settings = RegistrySettings.from_env({})
    assert (settings.host, settings.port, settings.udp_port) == ("0.0.0.0", 8089, 3478)
    assert (settings.cleanup_interval, settings.instance_timeout) == (30.0, 60.0)


def test_every_variable_is_read() -> None:
    environ = {
        "STUN_SERVER_HOST": "127.0.0.1",
        "STUN_SERVER_PORT": "9000",
        "STUN_CLEANUP_INTERVAL": "0.5",
        "STUN_INSTANCE_TIMEOUT": "2",
    }
    assert RegistrySettings.from_env(environ) == RegistrySettings(
        host="127.0.0.1", port=9000, cleanup_interval=0.5, instance_timeout=2.0
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STUN_SERVER_PORT", "0"),
        ("STUN_SERVER_PORT", "http"),
        ("STUN_SERVER_PORT", "65536"),
        ("STUN_CLEANUP_INTERVAL", "-1"),
        ("STUN_CLEANUP_INTERVAL", "soon"),
        ("STUN_INSTANCE_TIMEOUT", "nan"),
        ("STUN_INSTANCE_TIMEOUT", "inf"),
    ],
)
def test_errors_name_variable_value_and_expectation(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"Invalid {name}='{value}': expected "):
        RegistrySettings.from_env({name: value})


def test_responder_listens_where_http_does_unless_it_is_told_otherwise() -> None:
    assert RegistrySettings().udp_addresses == ("0.0.0.0", "::")
    assert RegistrySettings(host="127.0.0.1").udp_addresses == ("127.0.0.1",)
    behind_proxy = {"STUN_SERVER_HOST": "127.0.0.1", "STUN_UDP_HOST": "0.0.0.0"}
    assert RegistrySettings.from_env(behind_proxy).udp_addresses == ("0.0.0.0", "::")
