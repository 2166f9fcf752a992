"""Turns the text of environment variables into values, and says what is wrong with it.

Knows how a port, a boolean or a memory size is written (a `Form` each); does not know which
settings exist, `config.py` does, and it alone uses this module. Blank variables count as not set,
because compose files pass unset ones on that way.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Generic, NamedTuple, TypeVar
from urllib.parse import urlsplit

from comfy_cluster.errors import ConfigError

PREFIX = "COMFY_CLUSTER_"
LARGEST_PORT = 65_535
SHORTEST_KEY = 16

_TRUE_WORDS = ("true", "1", "yes", "on")
_FALSE_WORDS = ("false", "0", "no", "off")
_MEMORY_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
}
_MEMORY_PATTERN = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*|%)", re.IGNORECASE)
# RFC 1123 section 2.1, and "_" as well: container networks use it in names. A label has 1 to 63
# characters (RFC 1035 section 2.3.4).
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOSTNAME_PATTERN = re.compile(rf"(?!.{{254}}){_LABEL}(\.{_LABEL})*\.?")
# It becomes one segment of a URL path and a part of file names.
_CLUSTER_ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# It travels in an HTTP header: printable ASCII without blanks.
_KEY_PATTERN = re.compile(rf"[!-~]{{{SHORTEST_KEY},}}")

T = TypeVar("T")
D = TypeVar("D")
EnumT = TypeVar("EnumT", bound=Enum)


class InstanceAddress(NamedTuple):
    """Where an instance is reached: a name or IP literal (without brackets) and a UDP port."""

    hostname: str
    port: int

    def __str__(self) -> str:
        hostname = f"[{self.hostname}]" if ":" in self.hostname else self.hostname
        return f"{hostname}:{self.port}"


class InvalidPart(ValueError):
    """One part of a value is wrong; the text names it."""


@dataclass(frozen=True, slots=True)
class Form(Generic[T]):
    """One way to write a value."""

    parse: Callable[[str], T]
    """Gives the value, or raises ValueError (InvalidPart: of one part of it)."""
    expected: str
    """What `parse` takes, in words that complete "expected ..."."""
    is_secret: bool = False
    """Errors tell the length of the text and not the text."""


@dataclass(frozen=True, slots=True)
class SettingsReader:
    """Reads the variables of one environment; names are given without the prefix."""

    environ: Mapping[str, str]

    def text(self, name: str) -> str | None:
        """The value without surrounding blanks, or None when it is not set."""
        return self.environ.get(PREFIX + name, "").strip() or None

    def read(self, name: str, form: Form[T], *, default: D) -> T | D:
        """The parsed value, or `default` when it is not set. Raises ConfigError."""
        value = self.text(name)
        if value is None:
            return default
        try:
            return form.parse(value)
        except InvalidPart as error:
            raise invalid(name, value, f"{form.expected}; {error} is none") from None
        except ValueError:
            raise invalid(name, value, form.expected, is_secret=form.is_secret) from None

    def require(self, names: Iterable[str], *, why: str) -> None:
        """Raise ConfigError for those of `names` that are not set; `why` tells who needs them."""
        missing = [PREFIX + name for name in names if self.text(name) is None]
        if not missing:
            return
        also = f" (and {', '.join(missing[1:])})" if missing[1:] else ""
        raise ConfigError(
            f"Missing required environment variable {missing[0]}{also}: {why}",
            variable=missing[0],
        )

    def check_names(self, known: Iterable[str]) -> None:
        """Refuse variables of our prefix that nobody reads: most often they are misspelt.

        The value is not told: it can be a misspelt variable's secret.
        """
        names = sorted(PREFIX + name for name in known)
        for variable in sorted(self.environ):
            if variable.startswith(PREFIX) and variable not in names:
                nearest = difflib.get_close_matches(variable, names, n=1, cutoff=0.0)[0]
                raise ConfigError(
                    f"Unknown environment variable {variable}: did you mean {nearest}?",
                    variable=variable,
                )


def invalid(name: str, value: str, expected: str, *, is_secret: bool = False) -> ConfigError:
    """The error for a variable (named without the prefix) whose value is not as expected."""
    shown = f" ({len(value)} characters)" if is_secret else f"={value!r}"
    return ConfigError(
        f"Invalid {PREFIX}{name}{shown}: expected {expected}",
        variable=PREFIX + name,
        value=None if is_secret else value,
    )


def whole_number(minimum: int, maximum: int) -> Form[int]:
    def parse(text: str) -> int:
        return _within(int(text), minimum, maximum)

    return Form(parse, f"a whole number from {minimum} to {maximum}")


def one_of(choices: type[EnumT]) -> Form[EnumT]:
    """A member of an Enum with text values, in any letter case."""

    def parse(text: str) -> EnumT:
        for member in choices:
            if member.value.lower() == text.lower():
                return member
        raise ValueError(text)

    return Form(parse, f"one of {', '.join(member.value for member in choices)}")


def memory_size(total_memory: Callable[[], int]) -> Form[int]:
    """Bytes: a plain count, a size with unit, or a percentage of `total_memory()`."""

    def parse(text: str) -> int:
        match = _MEMORY_PATTERN.fullmatch(text)
        if match is None:
            raise ValueError(text)
        number, unit = float(match[1]), match[2].lower()
        if unit == "%":
            size = total_memory() * _within(number, 0, 100) / 100
        elif unit in _MEMORY_UNITS:
            size = number * _MEMORY_UNITS[unit]
        else:
            raise ValueError(text)
        return _within(int(size), 1, 1 << 63)

    return Form(parse, "bytes (268435456), a size (4GiB, 512MiB, 2GB) or a share of RAM (25%)")


def _parse_boolean(text: str) -> bool:
    word = text.lower()
    if word not in _TRUE_WORDS + _FALSE_WORDS:
        raise ValueError(text)
    return word in _TRUE_WORDS


def _parse_seconds(text: str) -> float:
    seconds = float(text)
    if not math.isfinite(seconds) or seconds <= 0:
        raise ValueError(text)
    return seconds


def _parse_port(text: str) -> int:
    return _within(int(text), 1, LARGEST_PORT)


def _parse_ip_address(text: str) -> str:
    if text.startswith("[") and text.endswith("]"):
        return str(ipaddress.IPv6Address(text[1:-1]))
    return str(ipaddress.ip_address(text))


def _parse_hostname(text: str) -> str:
    if ":" in text:
        return _parse_ip_address(text)
    return _matching(_HOSTNAME_PATTERN, text)


def _parse_urls(text: str) -> tuple[str, ...]:
    return tuple(_parse_url(part.strip()) for part in text.split(","))


def _parse_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(text)
    _ = parts.port  # raises ValueError when it is not one
    return text.rstrip("/")


def _parse_instance_addresses(text: str) -> tuple[InstanceAddress, ...]:
    return tuple(_parse_entry(index, part.strip()) for index, part in enumerate(text.split(",")))


def _parse_entry(index: int, text: str) -> InstanceAddress:
    try:
        return _parse_instance_address(text)
    except ValueError:
        raise InvalidPart(f"entry {index} ({text!r})") from None


def _parse_instance_address(text: str) -> InstanceAddress:
    hostname, colon, port = text.rpartition(":")
    if not colon or (":" in hostname and not hostname.startswith("[")):
        raise ValueError(text)
    return InstanceAddress(_parse_hostname(hostname), _parse_port(port))


def _matching(pattern: re.Pattern[str], text: str) -> str:
    if pattern.fullmatch(text) is None:
        raise ValueError(text)
    return text


NumberT = TypeVar("NumberT", int, float)


def _within(number: NumberT, minimum: int, maximum: int) -> NumberT:
    if not minimum <= number <= maximum:
        raise ValueError(number)
    return number


BOOLEAN = Form(_parse_boolean, f"one of {', '.join(_TRUE_WORDS + _FALSE_WORDS)}")
SECONDS = Form(_parse_seconds, "a number of seconds above 0")
PORT = Form(_parse_port, f"a port from 1 to {LARGEST_PORT}")
IP_ADDRESS = Form(_parse_ip_address, "an IP address of this machine, 0.0.0.0 or ::")
HOSTNAME = Form(_parse_hostname, "an IP address or a name, without a port")
URLS = Form(_parse_urls, "one or more http:// or https:// URLs, separated by commas")
INSTANCE_ADDRESSES = Form(
    _parse_instance_addresses,
    "host:port for every instance in index order, separated by commas, "
    "such as 10.0.0.1:9998,[fd00::2]:9998",
)
CLUSTER_ID = Form(
    lambda text: _matching(_CLUSTER_ID_PATTERN, text),
    "at most 128 letters, digits, '.', '_' or '-', the first a letter or digit",
)
KEY = Form(
    lambda text: _matching(_KEY_PATTERN, text),
    f"{SHORTEST_KEY} or more printable ASCII characters without blanks, better 32 or more",
    is_secret=True,
)
