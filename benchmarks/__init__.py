"""Measurements by hand, from a clone: `python -m benchmarks` is `comfy-cluster bench`.

The rows and all that they are made of are in `comfy_cluster/benchmarks/`, because the command is
part of the installed package. Here is what only developers need.
"""
