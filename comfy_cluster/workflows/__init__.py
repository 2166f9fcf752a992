"""Workflows as ComfyUI's API prompts: pure functions on dicts. No ComfyUI, no network."""
