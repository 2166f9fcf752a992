"""Where an instance of a benchmark is, and where the others are."""

from __future__ import annotations

from dataclasses import dataclass

TIMEOUT = 60.0  # seconds; a bound for what is broken, above every figure on loopback


@dataclass(frozen=True, slots=True)
class Place:
    """Of one instance."""

    index: int
    addresses: tuple[str, ...]
    """IP literals, one an instance."""
    timeout: float = TIMEOUT
    """Seconds for anything that waits for another instance."""

    @property
    def address(self) -> str:
        return self.addresses[self.index]

    @property
    def peers(self) -> list[int]:
        return [each for each in range(len(self.addresses)) if each != self.index]
