"""The command "Queue Cluster" in ComfyUI's page: oldest and newest frontend, both canvases.

The browser and ComfyUI are real. In a cluster of one the leader queues the prompt for itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.web import workflows
from tests.web.frontends import Frontend

if TYPE_CHECKING:  # it needs playwright, without which these tests are skipped
    from tests.web.pages import ComfyPage

pytestmark = pytest.mark.integration

COMMAND = "Cluster.Queue"
QUEUED = "Queued on the cluster"
REFUSED = "Not queued on the cluster"
NOT_READY = {
    "error": {
        "type": "not_ready",
        "message": "Connected: 2/4 instances",
        "details": "instances 1 and 3 have not answered yet",
    },
    "node_errors": {},
}


def seeds_sent(page: ComfyPage, node_id: str = str(workflows.NOISE)) -> list[int]:
    return [each["prompt"][node_id]["inputs"]["noise_seed"] for each in page.sent]


def test_the_command_sends_the_workflow_and_its_result_is_shown(page: ComfyPage) -> None:
    page.load(workflows.picture())
    expected = page.prompt()
    page.run(COMMAND)
    [sent] = page.sent
    assert sent["prompt"] == expected
    assert sent["client_id"] == page.client_id
    saved = sent["extra_data"]["extra_pnginfo"]["workflow"]
    assert {each["type"] for each in saved["nodes"]} == {
        "EmptyImage",
        "PreviewImage",
        "RandomNoise",
    }
    page.wait_for_notice(QUEUED)
    page.wait_for_image(workflows.PREVIEW)


def test_each_job_of_the_batch_count_has_a_seed_of_its_own(page: ComfyPage) -> None:
    page.load(workflows.picture())
    page.set_batch_count(3)
    page.run(COMMAND)
    first, *others = seeds_sent(page)
    assert first == workflows.SEED
    assert len({first, *others}) == 3
    page.wait_for_notice("3 jobs")
    page.run(COMMAND)
    assert len(set(seeds_sent(page))) == 6


def test_pressed_twice_at_once_it_queues_two_jobs_with_two_seeds(page: ComfyPage) -> None:
    page.load(workflows.picture())
    page.run(COMMAND, times=2)
    assert len(set(seeds_sent(page))) == 2


def test_a_fixed_seed_stays(page: ComfyPage) -> None:
    workflow = workflows.picture()
    workflow["nodes"][-1]["widgets_values"] = [workflows.SEED, "fixed"]
    page.load(workflow)
    page.run(COMMAND)
    page.run(COMMAND)
    assert seeds_sent(page) == [workflows.SEED] * 2


def test_a_seed_that_a_subgraph_shows_changes_too(page: ComfyPage, frontend: Frontend) -> None:
    if not frontend.owns_promoted_values:
        pytest.skip("this frontend leaves such seeds alone in its own runs, too")
    page.load(workflows.seed_in_subgraph())
    page.run(COMMAND)
    page.run(COMMAND)
    first, second = seeds_sent(page, f"{workflows.SUBGRAPH}:{workflows.NOISE}")
    assert first == workflows.SEED != second


def test_what_is_wrong_with_a_node_is_told_and_marked(page: ComfyPage) -> None:
    page.load(workflows.picture_without_image())
    page.run(COMMAND)
    page.wait_for_notice(REFUSED, "Preview Image (2): Required input is missing: images")
    assert page.marked_nodes() == page.selected_nodes() == [workflows.PREVIEW]
    assert page.prompt()[str(workflows.NOISE)]["inputs"]["noise_seed"] == workflows.SEED


def test_a_wrong_node_in_a_subgraph_is_named_and_the_subgraph_marked(page: ComfyPage) -> None:
    page.load(workflows.seed_in_subgraph())
    wrong = {"class_type": "RandomNoise", "errors": [{"message": "too loud", "details": ""}]}
    answer = {"error": {"message": "invalid"}, "node_errors": {"5:3": wrong}}
    page.answer_with(400, answer)
    page.run(COMMAND)
    page.wait_for_notice(REFUSED, "RandomNoise (5:3): too loud")
    assert page.marked_nodes() == page.selected_nodes() == [workflows.SUBGRAPH]


@pytest.mark.parametrize("command", [COMMAND, "Comfy.QueuePrompt"])
def test_marks_go_when_the_workflow_is_queued_again(page: ComfyPage, command: str) -> None:
    page.load(workflows.picture())
    wrong = {"class_type": "PreviewImage", "errors": [{"message": "no", "details": "such file"}]}
    answer = {"error": {"message": "invalid"}, "node_errors": {str(workflows.PREVIEW): wrong}}
    page.answer_with(400, answer)
    page.run(COMMAND)
    assert page.marked_nodes() == [workflows.PREVIEW]
    page.answer_again()
    page.run(command)
    assert page.marked_nodes() == []


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (503, NOT_READY, ["Connected: 2/4 instances", "instances 1 and 3 have not answered yet"]),
        (403, {"error": "only for this page"}, ["only for this page"]),
        (500, None, ["ComfyUI answered 500"]),
    ],
    ids=["not-ready", "text", "nothing"],
)
def test_a_refusal_is_shown_with_its_details(
    page: ComfyPage, status: int, body: object, expected: list[str]
) -> None:
    page.load(workflows.picture())
    page.set_batch_count(2)
    page.answer_with(status, body)
    page.run(COMMAND)
    page.wait_for_notice(REFUSED, *expected)
    assert len(page.sent) == 1, "it goes on after a refusal"
    assert not any(QUEUED in each for each in page.notices())
    assert page.prompt()[str(workflows.NOISE)]["inputs"]["noise_seed"] == workflows.SEED


def test_a_comfyui_that_does_not_answer_is_told(page: ComfyPage) -> None:
    page.load(workflows.picture())
    page.lose_requests()
    page.run(COMMAND)
    page.wait_for_notice(REFUSED, "ComfyUI does not answer")


def test_outputs_that_are_left_out_are_told(page: ComfyPage) -> None:
    page.load(workflows.picture())
    wrong = {"class_type": "PreviewImage", "errors": [{"message": "no such file", "details": ""}]}
    answer = {"job_id": "5f", "prompt_id": "5f", "number": 1, "node_errors": {"2": wrong}}
    page.answer_with(200, answer)
    page.run(COMMAND)
    page.wait_for_notice(QUEUED, "Job 5f")
    page.wait_for_notice("Some outputs are left out", "Preview Image (2): no such file")
    assert page.marked_nodes() == [workflows.PREVIEW]


def test_a_job_that_fails_is_not_kept_quiet(page: ComfyPage) -> None:
    page.load(workflows.failing())
    page.run(COMMAND)
    page.wait_for_text("was told to fail")


def test_a_warning_of_the_cluster_is_shown(page: ComfyPage) -> None:
    page.load(workflows.warning("instance 2 was lost"))
    page.run(COMMAND)
    page.wait_for_notice("ComfyUI Cluster", "instance 2 was lost")


def test_there_is_a_menu_entry(page: ComfyPage) -> None:
    page.load(workflows.picture())
    page.click_menu_entry()
    page.wait_for_notice(QUEUED)
    assert len(page.sent) == 1


def test_there_is_a_button_beside_run(page: ComfyPage, frontend: Frontend) -> None:
    page.load(workflows.picture())
    assert page.has_action_button() == frontend.has_action_bar
    if frontend.has_action_bar:
        page.click_action_button()
        page.wait_for_notice(QUEUED)
        assert len(page.sent) == 1
