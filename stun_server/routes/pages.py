"""The pages for a person with a browser: the clusters of a key, live; and the API to read."""

from __future__ import annotations

from flask import Blueprint

blueprint = Blueprint("pages", __name__)
