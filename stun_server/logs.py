"""Logs as one JSON object a line, with the request's id; the program itself uses `logging`.

No key is ever given to a logger: only fingerprints are.
"""

from __future__ import annotations

import logging
from typing import Any

import structlog

logger = logging.getLogger("stun_server")
audit_logger = logging.getLogger("stun_server.audit")


def json_formatter() -> logging.Formatter:
    """Renders records of `logging`, their `extra` and the bound request id."""
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ],
    )


def logging_config(level: str) -> dict[str, Any]:
    """For `logging.config.dictConfig`, and for gunicorn's setting of that name."""
    plain = {"handlers": ["stderr"], "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": "stun_server.logs.json_formatter"}},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "formatter": "json",
                "stream": "ext://sys.stderr",
            }
        },
        "root": {"level": "WARNING", "handlers": ["stderr"]},
        "loggers": {
            "stun_server": {"level": level, **plain},
            "gunicorn.error": {"level": level, **plain},
            "gunicorn.access": {"level": "WARNING", **plain},
            "werkzeug": {"level": "WARNING", **plain},  # else it writes each request once more
        },
    }
