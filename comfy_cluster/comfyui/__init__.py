"""The only part that imports ComfyUI, and only where it runs inside of it.

`host.ComfyHost` is what the work needs of ComfyUI (`work.host.Host`); differences between versions
of ComfyUI are told apart by looking at what is there, in `queue.py`. Tested against ComfyUI 0.3.64.
"""
