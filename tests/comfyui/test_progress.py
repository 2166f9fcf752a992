"""The leader's page sees how far the followers are."""

from __future__ import annotations

from tests.comfyui.events import PageEvents
from tests.comfyui.instances import ComfyCluster
from tests.comfyui.prompts import PromptBuilder, fan_in, fan_out, photographs, save


def test_the_fan_in_shows_instances_and_images(cluster: ComfyCluster, unique: str) -> None:
    builder = PromptBuilder()
    part = fan_out(builder, photographs(builder, 8))
    held = builder.add("TestGate", value=part, gate=unique, instances="3")
    end = fan_in(builder, held)
    save(builder, end, unique)
    leader = cluster.leader.client
    with PageEvents(leader.url, unique) as events:
        prompt_id = leader.queue(builder.prompt, client_id=unique)
        cluster.signals.wait_until_reached(unique, [3])
        half = (end.node_id, "3/4 instances, 6/8 images")
        events.wait_until(lambda: half in events.texts)
        cluster.signals.open(unique)
        leader.wait(prompt_id)
        events.wait_until(lambda: (end.node_id, "4/4 instances, 8/8 images") in events.texts)
        states = [data for kind, data in events.messages if kind == "progress_state"]
    shown = [each["nodes"][end.node_id] for each in states if end.node_id in each["nodes"]]
    assert any(0 < each["value"] < each["max"] for each in shown)


def test_followers_that_are_half_done_count_as_such(cluster: ComfyCluster, unique: str) -> None:
    builder = PromptBuilder()
    part = fan_out(builder, photographs(builder, 16))
    slept = builder.add("TestSleep", images=part, seconds=0.05, show_progress=True)
    held = builder.add("TestGate", value=slept, gate=unique, instances="1,2,3")
    end = fan_in(builder, held)
    save(builder, end, unique)
    leader = cluster.leader.client

    def values() -> list[float]:
        states = [data["nodes"] for kind, data in events.messages if kind == "progress_state"]
        return [nodes[end.node_id]["value"] for nodes in states if end.node_id in nodes]

    with PageEvents(leader.url, unique) as events:
        prompt_id = leader.queue(builder.prompt, client_id=unique)
        cluster.signals.wait_until_reached(unique, [1, 2, 3])
        events.wait_until(lambda: max(values(), default=0) > 4)  # more than the leader's own four
        cluster.signals.open(unique)
        leader.wait(prompt_id)
