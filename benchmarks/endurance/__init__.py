"""Endurance: all four collectives at once between three processes, for long, over links that lose.

    python -m benchmarks.endurance --minutes 60 --loss 0.01

For root only: the links are the link lab's. Every result is compared bit by bit, and what each
process holds (memory, descriptors, threads, what is pending) is looked at all the time.
`tests/endurance` runs the same for seconds. No part of the installed package.
"""

from benchmarks.endurance.run import Endurance, run

__all__ = ["Endurance", "run"]
