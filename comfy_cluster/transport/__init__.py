"""Sockets, threads and the clock: moves payloads and messages, and hands out handles for them.

Called by `cluster/`. It imports no torch and knows no tensors; the rules of what is sent when are
`protocol/`'s. Import from its modules: this one stays empty, so that a cluster of one, which needs
handles, loads no packet engine.
"""
