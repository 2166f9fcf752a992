"""The life of this instance: states, inputs, and the one table of what leads where.

Knows nothing of peers or jobs; `Cluster` decides when an input is due. `StateMachine.handle` is
the only writer of the state. `mermaid_diagram` draws the table for docs/architecture.md.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from enum import Enum

from comfy_cluster.errors import LocalProtocolError

logger = logging.getLogger("comfy_cluster.cluster")


class InstanceState(Enum):
    """Where an instance is in its life; the values are what users see."""

    INITIALIZE = "INITIALIZE"
    POPULATING = "POPULATING"
    IDLE = "IDLE"
    EXECUTING = "EXECUTING"
    ERROR = "ERROR"


class InstanceInput(Enum):
    """What happens to an instance; the values are the words on the diagram's arrows."""

    STARTED = "started"
    ENOUGH_CONNECTED = "MIN_INSTANCES connected"
    JOB_BEGAN = "first job began"
    JOB_ENDED = "last job ended"
    LEADER_LOST = "leader lost"
    FAILED = "unrecoverable error"


TRANSITIONS: Mapping[InstanceState, Mapping[InstanceInput, InstanceState]] = {
    InstanceState.INITIALIZE: {
        InstanceInput.STARTED: InstanceState.POPULATING,
        InstanceInput.FAILED: InstanceState.ERROR,
    },
    InstanceState.POPULATING: {
        InstanceInput.ENOUGH_CONNECTED: InstanceState.IDLE,
        # Of a job of a leader that was lost meanwhile.
        InstanceInput.JOB_ENDED: InstanceState.POPULATING,
        InstanceInput.FAILED: InstanceState.ERROR,
    },
    InstanceState.IDLE: {
        InstanceInput.JOB_BEGAN: InstanceState.EXECUTING,
        InstanceInput.LEADER_LOST: InstanceState.POPULATING,
        InstanceInput.FAILED: InstanceState.ERROR,
    },
    InstanceState.EXECUTING: {
        InstanceInput.JOB_ENDED: InstanceState.IDLE,
        InstanceInput.LEADER_LOST: InstanceState.POPULATING,
        InstanceInput.FAILED: InstanceState.ERROR,
    },
    # A job that was under way when the instance failed still comes to its end; and another thread
    # may be about to tell of peers.
    InstanceState.ERROR: {
        InstanceInput.ENOUGH_CONNECTED: InstanceState.ERROR,
        InstanceInput.LEADER_LOST: InstanceState.ERROR,
        InstanceInput.JOB_ENDED: InstanceState.ERROR,
        InstanceInput.FAILED: InstanceState.ERROR,
    },
}


class StateMachine:
    """Holds the state of one instance. Thread-safe."""

    def __init__(self) -> None:
        self._state = InstanceState.INITIALIZE
        self._lock = threading.Lock()

    @property
    def state(self) -> InstanceState:
        return self._state

    def handle(self, happened: InstanceInput) -> InstanceState:
        """Moves along the table and returns the new state.

        LocalProtocolError: the input is not allowed in this state, which stays as it is.
        """
        with self._lock:
            before = self._state
            after = TRANSITIONS[before].get(happened)
            if after is None:
                raise LocalProtocolError(
                    f"{happened.value!r} cannot happen to an instance that is {before.value}"
                )
            self._state = after
        if after is not before:
            logger.debug("= %s -> %s: %s", before.value, after.value, happened.value)
        return after


def mermaid_diagram() -> str:
    """The table as a mermaid state diagram, without the surrounding code fence."""
    lines = ["stateDiagram-v2", f"    [*] --> {InstanceState.INITIALIZE.value}"]
    for before, moves in TRANSITIONS.items():
        for happened, after in moves.items():
            lines.append(f"    {before.value} --> {after.value}: {happened.value}")
    return "\n".join(lines) + "\n"
