"""Chooses the packet engine: the compiled one, or its pure-Python twin where none was built.

The only module that imports either. `COMFY_CLUSTER_PURE_PYTHON=1` forces the twin,
`COMFY_CLUSTER_REQUIRE_FASTPATH=1` makes a missing compiled engine an error.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING

from .config import EngineChoice, engine_choice
from .errors import ConfigError

logger = logging.getLogger("comfy_cluster.engine")

BUILD_COMMAND = "pip install --force-reinstall --no-deps ."
NOT_BUILT = (
    "The compiled packet engine is not there; the pure-Python engine runs instead: same results,"
    f" many times slower. To build it: {BUILD_COMMAND} (in the project's folder, with a C compiler)"
)

if TYPE_CHECKING:
    from . import _fastpath as engine
else:

    def _load_engine():
        package = __name__.rpartition(".")[0]
        choice = engine_choice()
        if choice is not EngineChoice.PURE_PYTHON:
            try:
                return importlib.import_module("._fastpath", package)
            except ImportError as error:
                if choice is EngineChoice.REQUIRE_COMPILED:
                    raise ConfigError(
                        "COMFY_CLUSTER_REQUIRE_FASTPATH is set, but the compiled packet engine"
                        f" cannot be loaded ({error}). To build it: {BUILD_COMMAND}",
                        variable="COMFY_CLUSTER_REQUIRE_FASTPATH",
                    ) from error
                logger.warning("! %s", NOT_BUILT)
        return importlib.import_module("._fastpath_py", package)

    engine = _load_engine()

COUNTERS = engine.COUNTERS
EVENT_HELLO = engine.EVENT_HELLO
EVENT_INCOMING_COMPLETE = engine.EVENT_INCOMING_COMPLETE
EVENT_MESSAGE = engine.EVENT_MESSAGE
EVENT_OUTGOING_ACKED = engine.EVENT_OUTGOING_ACKED
EVENT_PACKET_SIZE = engine.EVENT_PACKET_SIZE
EVENT_STUN = engine.EVENT_STUN
HAS_CEILING = engine.HAS_CEILING
HAS_LOOPS = engine.HAS_LOOPS
HEADER_SIZE = engine.HEADER_SIZE
IS_COMPILED = engine.IS_COMPILED
MAX_PACKET_SIZE = engine.MAX_PACKET_SIZE
MAX_PEERS = engine.MAX_PEERS
MAX_STUN_TRANSACTIONS = engine.MAX_STUN_TRANSACTIONS
MESSAGE_PAYLOAD_LIMIT = engine.MESSAGE_PAYLOAD_LIMIT
MIN_PACKET_SIZE = engine.MIN_PACKET_SIZE
PROBE_SIZES = engine.PROBE_SIZES
ENGINE_NAME = "compiled" if IS_COMPILED else "pure Python"

PacketEngine = engine.PacketEngine
RttEstimator = engine.RttEstimator
ceiling_receive = engine.ceiling_receive
ceiling_send = engine.ceiling_send
chunk_size_for = engine.chunk_size_for
find_levels = engine.find_levels
pack_rows = engine.pack_rows
restore_values = engine.restore_values
undo_up_filter = engine.undo_up_filter
unpack_rows = engine.unpack_rows
