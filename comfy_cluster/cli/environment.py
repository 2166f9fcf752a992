"""`comfy-cluster info`: versions, engine and settings as this process finds them. No network."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping
from importlib import metadata

from rich.console import Console
from rich.table import Table

from comfy_cluster import __version__, fastpath
from comfy_cluster.config import ClusterConfig
from comfy_cluster.settings_parsing import PREFIX
from comfy_cluster.settings_values import SETTINGS

_SECRET_FIELDS = {"key"}


def print_environment(console: Console, environ: Mapping[str, str]) -> None:
    """ConfigError: a setting is wrong."""
    config = ClusterConfig.from_env(environ)
    console.print(f"comfy-cluster {__version__}, Python {platform.python_version()}, ", end="")
    console.print(f"torch {_version_of('torch')}", highlight=False)
    console.print(f"Packet engine: {fastpath.ENGINE_NAME}", highlight=False)
    if config.is_single:
        console.print("One instance: a cluster of one, no socket is opened", highlight=False)
    console.print(_settings_table(config))


def _settings_table(config: ClusterConfig) -> Table:
    table = Table("variable", "value", title="Settings")
    for field in dataclasses.fields(config):
        if field.name in SETTINGS:
            variable, _ = SETTINGS[field.name]
            table.add_row(PREFIX + variable, _value_text(field.name, getattr(config, field.name)))
    return table


def _value_text(name: str, value: object) -> str:
    if value is None or value == ():
        return "-"
    if name in _SECRET_FIELDS:
        return "(set, not shown)"
    if isinstance(value, tuple):
        return ", ".join(str(each) for each in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _version_of(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "is not installed"
