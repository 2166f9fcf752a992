"""What gunicorn loads: `gunicorn -c python:stun_server.gunicorn_conf stun_server.wsgi:app`."""

from __future__ import annotations

import os

from stun_server.app import create_app
from stun_server.service import Service
from stun_server.settings import kept_settings
from stun_server.store import open_store

_settings = kept_settings()
app = create_app(
    service=Service(
        _settings,
        open_store(_settings.store),
        is_shared="PROMETHEUS_MULTIPROC_DIR" in os.environ,
    )
)
