"""`comfy-cluster doctor`: finds out what keeps instances from connecting, layer by layer.

Read `examination.py` first: it has the order of the checks. Each check is a function that returns
`Finding`s; nothing here repairs anything. Called by `cli/`. Imports no torch.
"""
