"""Workflows over the cluster: what nodes ask for, and what followers are asked to run.

Knows ComfyUI only as the `Host` of `host.py`, which `comfyui/` offers and tests put their own in
place of. Called by `nodes/` and by the routes of `comfyui/`, through `runtime`.
"""
