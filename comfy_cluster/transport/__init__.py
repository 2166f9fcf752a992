"""Sockets, threads and the clock: moves payloads and messages, and hands out handles for them.

Called by `cluster/`. It imports no torch and knows no tensors; the rules of what is sent when are
`protocol/`'s.
"""
