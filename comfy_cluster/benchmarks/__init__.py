"""Measurements of this project beside what a Python user would pick instead, in one run.

`comfy-cluster bench` and `python -m benchmarks` run them; `benchmarks/netlab` uses the same parts
on emulated links. Nothing here asserts a time: figures are ratios from one run on the same bytes.

Words. A *row* is one question (`rows/`). A *way* is one means of moving bytes (`ways/`): ours, and
the peers it is compared with. A *round* is one transfer by one way; rounds of all ways alternate,
so that noise hits all alike, and the median counts.

How it works. `instances.py` starts a process for each instance of the benchmark (`instance.py`) and
gives it commands over a pipe. All ways of a row are open in the same processes. `measure.py` runs
the rounds and checks each result; `results.py` works the figures out; `table.py` shows them.

To measure elsewhere than on loopback, say where each process runs:

    sites = [Site("10.0.0.1", command_prefix=("ip", "netns", "exec", "left"), interface="veth0"),
             Site("10.0.0.2", command_prefix=("ip", "netns", "exec", "right"), interface="veth1")]
    transfer = point_to_point(101.0)
    with Instances(sites, os.environ) as instances:
        opened = open_ways(instances, ["ours-udp", "tcp", "iperf3"])
        results = measure(instances, transfer, opened.names, rounds=7)
"""
