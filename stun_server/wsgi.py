"""What gunicorn loads: `gunicorn --bind 0.0.0.0:8089 stun_server.wsgi:app`."""

from __future__ import annotations

import os

from stun_server.app import create_app
from stun_server.settings import RegistrySettings

app = create_app(RegistrySettings.from_env(os.environ))
