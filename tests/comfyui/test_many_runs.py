"""Many runs in a row, mixed with changes, interrupts, failures and a `kill -9`: all end right."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle

import psutil
import pytest
import torch

from tests.comfyui.client import PromptFailed, PromptInterrupted
from tests.comfyui.comparing import assert_same
from tests.comfyui.instances import ComfyCluster, ComfyInstance
from tests.comfyui.prompts import Nodes, PromptBuilder, Ref, over_images

RUN_COUNT = int(os.environ.get("CLUSTER_COMFY_RUNS", "12"))
SETTLED_AFTER = 5  # runs until everything that is kept has been made once
SPARE_COUNT = 6  # file descriptors or threads that may come on top by chance
STEPS = ("same", "inside", "upstream", "smaller", "interrupt", "fail", "everywhere", "downstream")


@dataclass(slots=True)
class Runs:
    """The runs of one test: a workflow that changes from run to run."""

    cluster: ComfyCluster
    name: str
    rng: random.Random
    sigma: float = 1.0
    first: int = 0
    count: int = 9
    number: int = 0
    expected: dict[tuple[float, int, int], torch.Tensor] = field(default_factory=dict)
    """What one machine makes, by what it depends on."""

    def prompt(self, *, is_divided: bool = True) -> Nodes:
        def through(builder: PromptBuilder, images: Ref) -> Ref:
            blurred = builder.add("ImageBlur", image=images, blur_radius=2, sigma=self.sigma)
            if not is_divided:
                return blurred
            held = builder.add("TestGate", value=blurred, gate=self.name, instances="")
            settings = {"name": self.name, "instances": "3", "only_marked": False}
            return builder.add("TestFail", images=held, **settings)

        name = f"{self.name}-{self.number}" if is_divided else f"{self.name}-plain"
        numbers = {"count": self.count, "first": self.first}
        return over_images(through, **numbers, cluster=is_divided, name=name)

    def take(self, step: str) -> None:
        """One run, and whatever is special about it."""
        self._change(step)
        if step in ("interrupt", "kill"):
            self.cluster.signals.close(self.name)
        if step == "fail":
            self.cluster.signals.break_node(self.name)
            with pytest.raises(PromptFailed, match="instance 3"):
                self.cluster.leader.client.run(self.prompt())
            self.cluster.signals.mend_node(self.name)
        elif step == "interrupt":
            self._interrupt()
        else:
            self._run(step)

    def _change(self, step: str) -> None:
        if step == "inside":
            self.sigma = self.rng.choice([0.5, 1.0, 2.0])
        elif step == "upstream":
            self.first = self.rng.randrange(20)
        elif step == "smaller":
            self.count = self.rng.choice([1, 3, 9, 13])
        elif step == "downstream":
            self.number += 1
        elif step in ("fail", "kill"):
            self.count = 9  # something to do for everybody

    def _interrupt(self) -> None:
        prompt_id = self.cluster.leader.client.queue(self.prompt())
        busy = range(min(self.count, 4))
        self.cluster.signals.wait_until_reached(self.name, busy)
        self.cluster.leader.client.interrupt()
        with pytest.raises(PromptInterrupted):
            self.cluster.leader.client.wait(prompt_id)
        self.cluster.signals.wait_until_interrupted(self.name, busy)
        self.cluster.signals.open(self.name)

    def _run(self, step: str) -> None:
        client = self.cluster.leader.client
        prompt = self.prompt()
        if step == "everywhere":
            client.run_on_cluster(prompt)
        elif step == "kill":
            prompt_id = client.queue(prompt)
            self.cluster.signals.wait_until_reached(self.name, [1])
            self.cluster.instances[1].kill()
            self.cluster.signals.open(self.name)
            client.wait(prompt_id)
        else:
            client.run(prompt)
        assert_same(self.cluster.leader.saved(f"{self.name}-{self.number}"), [self._plain()])

    def _plain(self) -> torch.Tensor:
        key = (self.sigma, self.first, self.count)
        if key not in self.expected:
            self.cluster.leader.client.run(self.prompt(is_divided=False))
            (self.expected[key],) = self.cluster.leader.saved(f"{self.name}-plain")
        return self.expected[key]


def usage(instance: ComfyInstance) -> tuple[int, int]:
    """Open file descriptors and threads."""
    process = psutil.Process(instance.pid)
    return process.num_fds(), process.num_threads()


def steps(rng: random.Random) -> Iterator[str]:
    """All kinds of steps in mixed order, with one `kill` in the middle."""
    mixed = cycle(rng.sample(STEPS, len(STEPS)))
    for number in range(RUN_COUNT):
        yield "kill" if number == RUN_COUNT // 2 else next(mixed)


def test_many_runs_in_a_row(cluster: ComfyCluster, rng: random.Random, unique: str) -> None:
    runs = Runs(cluster, unique, rng)
    cluster.signals.open(unique)
    before: dict[int, tuple[int, int]] = {}
    for number, step in enumerate(steps(rng)):
        print(f"run {number}: {step}")
        runs.take(step)
        if step == "kill":
            cluster.recover()
        if number == SETTLED_AFTER:
            cluster.wait_until_idle()
            before = {each.pid: usage(each) for each in cluster.instances}
    cluster.wait_until_idle()
    for each in cluster.instances:
        if each.pid in before:
            grown = [new - old for old, new in zip(before[each.pid], usage(each), strict=True)]
            assert max(grown) <= SPARE_COUNT, f"instance {each.index}: {grown} more"
    runs.take("same")
