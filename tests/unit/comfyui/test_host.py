"""`ComfyHost` against ComfyUI's modules, old and new."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from comfy_cluster.errors import WorkflowError
from comfy_cluster.work.host import Phase, PromptState
from tests.unit.comfyui.fake_modules import FakeComfyUI

WAIT = 20.0  # seconds; a bound for a broken build, never waited for in a good one
PROMPT = {"1": {"class_type": "LoadImage", "inputs": {"image": "cat.png"}}}


@pytest.fixture
def host(comfyui: FakeComfyUI) -> Iterator[Any]:
    """A host on a server whose event loop runs on another thread."""
    from comfy_cluster.comfyui.host import ComfyHost

    loop = comfyui.server.loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield ComfyHost(comfyui.server, is_leader=True)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(WAIT)
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def workflow_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "default" / "workflows"
    (folder / "sub").mkdir(parents=True)
    return folder


# Prompts.


def test_a_prompt_is_validated_and_queued(comfyui: FakeComfyUI, host: Any) -> None:
    host.submit(PROMPT, "a", extra_data={"client_id": "page"}, is_first=False).result(WAIT)
    (item,) = comfyui.server.prompt_queue.queue
    assert item[1] == "a"
    assert item[3]["client_id"] == "page"
    assert item[4] == ["1"]
    assert host.state_of("a").phase is Phase.QUEUED


def test_what_cannot_run_is_not_queued(comfyui: FakeComfyUI, host: Any) -> None:
    unknown = {"1": {"class_type": "Blur", "inputs": {}}}
    error = host.submit(unknown, "a", extra_data={}).exception(WAIT)
    assert isinstance(error, WorkflowError)
    assert str(error).startswith("lacks node class Blur")
    assert comfyui.server.prompt_queue.queue == []


def test_a_prompt_may_only_be_looked_at(comfyui: FakeComfyUI, host: Any) -> None:
    host.check(PROMPT, "a").result(WAIT)
    error = host.check({"1": {"class_type": "Blur", "inputs": {}}}, "a").exception(WAIT)
    assert str(error).startswith("lacks node class Blur")
    assert comfyui.server.prompt_queue.queue == []


def test_a_validation_that_raises_is_an_error_too(comfyui: FakeComfyUI, host: Any) -> None:
    async def broken(*_: Any) -> Any:
        raise KeyError("inputs")

    comfyui.validate = broken
    error = host.submit(PROMPT, "a", extra_data={}).exception(WAIT)
    assert isinstance(error, WorkflowError)
    assert "cannot run it: KeyError('inputs')" in str(error)


def test_a_prompt_is_watched_and_cancelled(comfyui: FakeComfyUI, host: Any) -> None:
    ends: list[PromptState] = []
    is_over = threading.Event()

    def on_over(state: PromptState) -> None:
        ends.append(state)
        is_over.set()

    host.submit(PROMPT, "a", extra_data={}).result(WAIT)
    queue = comfyui.server.prompt_queue
    _, number = queue.get()
    host.watch("a", on_over=on_over)
    host.cancel("a")
    assert host.is_interrupted()
    with pytest.raises(comfyui.interrupt_class):
        host.raise_if_interrupted()
    messages = [("execution_interrupted", {"node_id": "1", "node_type": "LoadImage"})]
    queue.task_done(number, {"outputs": {}}, {"status_str": "error", "messages": messages})
    assert is_over.wait(WAIT)
    assert [state.phase for state in ends] == [Phase.INTERRUPTED]


def test_the_prompt_that_asks(comfyui: FakeComfyUI, host: Any) -> None:
    assert host.running_prompt_id() == ""
    host.submit(PROMPT, "a", extra_data={"more": 1}).result(WAIT)
    comfyui.server.prompt_queue.get()
    assert host.running_prompt_id() == "a"
    assert host.extra_data("a") == {"more": 1}
    assert host.requested_outputs("a") == ["1"]
    comfyui.context = SimpleNamespace(prompt_id="b", node_id="1", list_index=0)
    assert host.running_prompt_id() == "b"


# While a node runs.


def test_asking_does_not_clear_the_flag(comfyui: FakeComfyUI, host: Any) -> None:
    host.raise_if_interrupted()
    comfyui.is_interrupted = True
    assert host.is_interrupted() and host.is_interrupted()
    with pytest.raises(comfyui.interrupt_class):
        host.raise_if_interrupted()
    assert not host.is_interrupted()


def test_memory_is_freed_now(comfyui: FakeComfyUI, host: Any) -> None:
    host.free_now(unload_models=True, free_memory=False)
    host.free_now(unload_models=False, free_memory=True)
    assert comfyui.freed == ["models", "cache"]


@pytest.mark.parametrize(
    ("calls", "flags"),
    [
        ([(True, False)], {"unload_models": True}),
        ([(True, True)], {"unload_models": True, "free_memory": True}),
        # ComfyUI unloads models whenever it frees memory, unless it is told not to.
        ([(False, True)], {"unload_models": False, "free_memory": True}),
        ([(True, False), (False, True)], {"unload_models": True, "free_memory": True}),
        ([(False, True), (True, False)], {"unload_models": True, "free_memory": True}),
    ],
)
def test_what_is_freed_at_the_end(
    comfyui: FakeComfyUI, host: Any, calls: list[tuple[bool, bool]], flags: dict[str, bool]
) -> None:
    for unload_models, free_memory in calls:
        host.free_when_done(unload_models=unload_models, free_memory=free_memory)
    assert comfyui.server.prompt_queue.flags == flags


def test_nodes_behind_can_be_skipped(host: Any) -> None:
    assert host.stop_blocked().message is None


def test_progress_is_shown_on_the_running_prompt_only(comfyui: FakeComfyUI, host: Any) -> None:
    comfyui.progress.prompt_id = "a"
    comfyui.server.client_id = "page"
    host.show_progress("b", "4", 1, 8, "1/8")
    assert comfyui.progress.updates == []
    host.show_progress("a", "4", 1, 8, "1/8")
    host.show_progress("a", "4", 0, 0, "nothing")
    assert comfyui.progress.updates == [("4", 1, 8), ("4", 0, 1)]
    assert comfyui.server.shown == [("1/8", "4", "page"), ("nothing", "4", "page")]


def test_progress_without_a_page(comfyui: FakeComfyUI, host: Any) -> None:
    comfyui.progress.prompt_id = "a"
    host.show_progress("a", "4", 1, 8, "1/8")
    assert comfyui.server.shown == []


def test_how_much_of_a_prompt_is_done(comfyui: FakeComfyUI, host: Any) -> None:
    from comfy_cluster.comfyui.progress import fraction_of

    comfyui.progress.prompt_id = "a"
    comfyui.progress.dynprompt = SimpleNamespace(all_node_ids=lambda: {"1", "2", "3", "4"})
    comfyui.progress.nodes = {
        "1": {"value": 1, "max": 1},
        "2": {"value": 5, "max": 20},
        "3": {"value": 0, "max": 0},
    }
    assert fraction_of("a") == pytest.approx(1.25 / 4)
    assert fraction_of("b") == 0.0
    comfyui.progress.nodes = {str(each): {"value": 9, "max": 3} for each in range(9)}
    assert fraction_of("a") == 1.0
    comfyui.progress.dynprompt = SimpleNamespace(all_node_ids=set)
    assert fraction_of("a") == 0.0


# Files.


def test_a_workflow_file(tmp_path: Path, host: Any) -> None:
    folder = workflow_folder(tmp_path)
    (folder / "sub" / "a.json").write_text(json.dumps({"1": "ü"}), encoding="utf-8")
    assert host.read_workflow("sub/a.json") == {"1": "ü"}


@pytest.mark.parametrize(
    "path", ["", "..", "../secret.json", "sub/../../../secret.json", "/etc/hostname"]
)
def test_nothing_outside_of_the_workflow_folder_is_read(
    tmp_path: Path, host: Any, path: str
) -> None:
    workflow_folder(tmp_path)
    (tmp_path / "default" / "secret.json").write_text("{}")
    with pytest.raises(WorkflowError, match="expected a file below the workflow folder"):
        host.read_workflow(path)


def test_a_link_out_of_the_workflow_folder_is_not_followed(tmp_path: Path, host: Any) -> None:
    folder = workflow_folder(tmp_path)
    (tmp_path / "secret.json").write_text("{}")
    (folder / "a.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(WorkflowError, match="expected a file below"):
        host.read_workflow("a.json")


def test_a_file_that_is_not_there_and_what_is(tmp_path: Path, host: Any) -> None:
    folder = workflow_folder(tmp_path)
    for name in ("b.json", "sub/c.json", "d.txt"):
        (folder / name).write_text("{}")
    with pytest.raises(
        WorkflowError, match=r"no workflow 'a\.json' in .*; it has b\.json, sub/c\.json$"
    ):
        host.read_workflow("a.json")
    with pytest.raises(WorkflowError, match="there is no workflow 'sub'"):
        host.read_workflow("sub")


@pytest.mark.parametrize("name", ["a\0.json", "x" * 5_000])
def test_names_that_no_file_can_have(tmp_path: Path, host: Any, name: str) -> None:
    workflow_folder(tmp_path)
    with pytest.raises(WorkflowError):
        host.read_workflow(name)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\xfd", b""])
def test_a_file_that_is_no_json(tmp_path: Path, host: Any, content: bytes) -> None:
    (workflow_folder(tmp_path) / "a.json").write_bytes(content)
    with pytest.raises(WorkflowError, match=r"a\.json cannot be read as JSON"):
        host.read_workflow("a.json")


def test_images_of_the_input_folder(host: Any) -> None:
    assert host.image_names() == ["cat.png", "dog.png"]
    assert host.check_image("cat.png") == ""
    assert host.check_image("mouse.png") == "there is no image 'mouse.png' in the input folder"
    assert host.check_image("sub/../cat.png") == ""
    assert host.check_image("../output/cat.png") == ""
    assert host.load_image("cat.png") == ("image of cat.png", "mask of cat.png")


@pytest.mark.parametrize("name", ["../../cat.png", "/etc/cat.png", "../inputs/cat.png"])
def test_images_outside_of_comfyuis_folders(host: Any, name: str) -> None:
    assert "is outside of ComfyUI's folders" in host.check_image(name)
    with pytest.raises(WorkflowError, match="is outside of ComfyUI's folders"):
        host.load_image(name)


def test_node_expansion_needs_the_cache(comfyui: FakeComfyUI, host: Any) -> None:
    assert host.can_expand
    comfyui.arguments.cache_none = True
    assert not host.can_expand
    del comfyui.arguments.cache_none  # older ones have no such option
    assert host.can_expand


def test_what_is_known_of_node_classes(host: Any) -> None:
    assert host.node_type("LoadImage").output_types == ("IMAGE", "MASK")
    assert not host.node_type("Blur").is_known
    assert host.is_leader
