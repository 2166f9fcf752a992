"""Counters of shared memory; docs/protocol.md defines them in words. Control thread only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class SharedMemoryStats:
    """All count from the start of the instance."""

    links_made: int = 0
    links_lost: int = 0
    refused_user: int = 0
    """Connections to the Unix socket of another user's process."""
    refused_proof: int = 0
    """... that are of none of our peers."""
    refused_record: int = 0
    """... that sent what is no record, or not the one expected."""
    refused_silent: int = 0
    """... that proved nothing in time."""
    refused_crowd: int = 0
    """... above the number that may be unproven at once."""
    refused_segments: int = 0
    """Descriptors that are not safe to map, or could not be mapped."""
    buffers_sent: int = 0
    bytes_sent: int = 0
    buffers_received: int = 0
    bytes_received: int = 0
    buffers_given_up: int = 0
    """Accepted buffers for which no segment could be had: they go over UDP."""
    segments: int = 0
    """That exist now."""
    segments_made: int = 0
    segments_reused: int = 0
    mappings_reused: int = 0
