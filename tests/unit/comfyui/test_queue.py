"""ComfyUI's prompt queue, of both ages."""

from __future__ import annotations

from typing import Any

import pytest

from comfy_cluster.comfyui.queue import PromptQueue
from comfy_cluster.work.host import Phase, PromptState
from tests.unit.comfyui.fake_modules import QUEUES, FakeServer, NewQueue, OldQueue, Status

PROMPT = {"1": {"class_type": "Blur", "inputs": {}}}


class Fixture:
    """A server and the queue's view on it."""

    def __init__(self, queue_class: Any) -> None:
        self.server = FakeServer(queue_class())
        self.interrupts: list[str] = []
        self.queue = PromptQueue(self.server, lambda: self.interrupts.append(self.queue.running_id))

    def put(self, prompt_id: str, *, is_first: bool = False, **extra_data: Any) -> float:
        return self.queue.put(
            PROMPT, prompt_id, extra_data=extra_data, outputs=["1"], is_first=is_first
        )

    def start(self) -> int:
        number: int = self.server.prompt_queue.get()[1]
        return number

    def end(self, number: int, status: Status | None, outputs: dict[str, Any]) -> None:
        told = None if status is None else status.as_dict()
        self.server.prompt_queue.task_done(number, {"outputs": outputs, "meta": {}}, told)


@pytest.fixture(params=QUEUES)
def fixture(request: pytest.FixtureRequest) -> Fixture:
    return Fixture(request.param)


def test_items_are_what_each_age_wants() -> None:
    old, new = Fixture(OldQueue), Fixture(NewQueue)
    for each in (old, new):
        each.put("a", client_id="page")
    (old_item,) = old.server.prompt_queue.queue
    (new_item,) = new.server.prompt_queue.queue
    assert old_item == (7, "a", PROMPT, {"client_id": "page"}, ["1"])
    assert new_item[:3] == (7, "a", PROMPT)
    assert new_item[3]["client_id"] == "page"
    assert isinstance(new_item[3]["create_time"], int)
    assert new_item[4:] == (["1"], {})
    assert old.server.number == new.server.number == 8


def test_secrets_are_kept_where_each_age_keeps_them() -> None:
    old, new = Fixture(OldQueue), Fixture(NewQueue)
    for each in (old, new):
        each.put("a", api_key_comfy_org="s", more=1)
    (old_item,) = old.server.prompt_queue.queue
    (new_item,) = new.server.prompt_queue.queue
    assert old_item[3] == {"api_key_comfy_org": "s", "more": 1}
    assert new_item[3].keys() == {"more", "create_time"}
    assert new_item[5] == {"api_key_comfy_org": "s"}


def test_the_callers_extra_data_stays_as_it_is(fixture: Fixture) -> None:
    extra_data: dict[str, Any] = {}
    fixture.queue.put(PROMPT, "a", extra_data=extra_data, outputs=["1"], is_first=True)
    assert extra_data == {}


def test_what_is_first_comes_before_all_others_and_in_its_own_order(fixture: Fixture) -> None:
    fixture.put("user 1")
    fixture.put("order 1", is_first=True)
    fixture.put("user 2")
    fixture.put("order 2", is_first=True)
    fixture.server.prompt_queue.put((-3, "user in front", PROMPT, {}, ["1"]))
    taken = [fixture.server.prompt_queue.get()[0][1] for _ in range(5)]
    assert taken == ["order 1", "order 2", "user in front", "user 1", "user 2"]


def test_a_prompt_is_followed_to_its_end(fixture: Fixture) -> None:
    assert fixture.queue.state_of("a") == PromptState(Phase.GONE)
    fixture.put("a")
    assert fixture.queue.state_of("a").phase is Phase.QUEUED
    number = fixture.start()
    assert fixture.queue.state_of("a").phase is Phase.RUNNING
    assert fixture.queue.running_id == "a"
    fixture.end(number, Status(), {"1": {"images": ["x"]}})
    assert fixture.queue.state_of("a") == PromptState(Phase.SUCCEEDED, {"1": {"images": ["x"]}})
    assert fixture.queue.running_id == ""


@pytest.mark.parametrize(
    ("event", "phase", "message"),
    [
        ("execution_error", Phase.FAILED, "out of paint"),
        ("execution_interrupted", Phase.INTERRUPTED, "execution interrupted"),
    ],
)
def test_a_prompt_that_does_not_succeed(
    fixture: Fixture, event: str, phase: Phase, message: str
) -> None:
    fixture.put("a")
    number = fixture.start()
    details = {"node_id": "5", "node_type": "Blur"}
    if phase is Phase.FAILED:
        details["exception_message"] = "out of paint\n"
    messages = [("execution_start", {"prompt_id": "a"}), (event, details)]
    fixture.end(number, Status("error", messages), {})
    assert fixture.queue.state_of("a") == PromptState(phase, {}, "node 5 (Blur)", message)


def test_an_end_that_nobody_explains(fixture: Fixture) -> None:
    fixture.put("a")
    fixture.end(fixture.start(), Status("error"), {})
    assert fixture.queue.state_of("a").phase is Phase.FAILED
    fixture.put("b")
    fixture.end(fixture.start(), None, {})
    assert fixture.queue.state_of("b").phase is Phase.SUCCEEDED


def test_cancel_takes_out_what_waits(fixture: Fixture) -> None:
    for each in "abc":
        fixture.put(each)
    fixture.start()
    fixture.queue.cancel("b")
    assert fixture.queue.state_of("b").phase is Phase.GONE
    assert fixture.queue.state_of("c").phase is Phase.QUEUED
    assert fixture.interrupts == []


def test_cancel_interrupts_what_runs_and_nothing_else(fixture: Fixture) -> None:
    fixture.put("a")
    fixture.start()
    fixture.queue.cancel("b")
    assert fixture.interrupts == []
    fixture.queue.cancel("a")
    assert fixture.interrupts == ["a"]
    assert fixture.queue.state_of("a").phase is Phase.RUNNING


def test_what_a_prompt_was_queued_with(fixture: Fixture) -> None:
    secrets: dict[str, Any] = {"auth_token_comfy_org": "s", "api_key_comfy_org": "s"}
    fixture.put("a", client_id="page", extra_pnginfo={"workflow": 1}, **secrets)
    assert fixture.queue.outputs("a") is None
    assert fixture.queue.extra_data("a") == {}
    fixture.start()
    assert fixture.queue.extra_data("a") == {"extra_pnginfo": {"workflow": 1}}
    assert fixture.queue.outputs("a") == ["1"]
    assert fixture.queue.outputs("b") is None
