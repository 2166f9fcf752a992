"""The HTTP routes: thin, one file a subject; the rules are in `registry.py` and `gate.py`."""
