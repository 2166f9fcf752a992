"""ComfyUI's page in a real browser, with the words of the tests."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from playwright.sync_api import BrowserContext, Locator, Page, Request, Route, expect

from tests.web.workflows import Workflow

COMMAND = "Cluster.Queue"
LABEL = "Queue Cluster"
WAIT_MS = 60_000
"""A bound for what hangs, never waited for in a good run."""
_QUEUE_URL = "**/cluster/queue"
# Of the old frontend, and of the new one (which has the text twice, once for screen readers).
_NOTICE = ".p-toast-message, [data-reka-toast-announce-exclude]"
_CLOSE_NOTICES = """
() => {
  const { toast } = app.extensionManager;
  (toast.dismissAll ?? toast.removeAll).call(toast);
}
"""
_RUN_COMMAND = """
([id, times]) => {
  const { command } = app.extensionManager;
  return Promise.all(Array.from({ length: times }, () => command.execute(id)));
}
"""
# Into the tab that is open, since each tab makes the page slower.
_LOAD_WORKFLOW = """
workflow => app.loadGraphData(workflow, true, true, app.extensionManager.workflow.activeWorkflow)
"""
_MENU = ".comfyui-logo, .comfy-menu-button-wrapper"


@dataclass  # without slots: playwright keeps its wrappers of our methods on the object
class ComfyPage:
    """One open page of a ComfyUI whose files of ours have `extension_path` in their URL."""

    page: Page
    extension_path: str
    sent: list[dict[str, Any]] = field(default_factory=list)
    """What the page has sent to /cluster/queue since the workflow was loaded."""
    troubles: list[str] = field(default_factory=list)
    """Warnings and errors of the console, and exceptions, that our files have caused."""

    @classmethod
    def open(cls, context: BrowserContext, url: str, *, extension_path: str) -> ComfyPage:
        """Waits until the page has our command."""
        ours = cls(context.new_page(), extension_path)
        ours._listen()
        ours.page.set_default_timeout(WAIT_MS)
        ours.page.goto(url)
        ours._wait_for(
            "id => window.app?.extensionManager?.command?.commands?.some(each => each.id === id)",
            COMMAND,
            timeout_ms=2 * WAIT_MS,  # the first time, on a machine that does other things too
        )
        return ours

    def _listen(self) -> None:
        self.page.on("request", self._on_request)
        session = self.page.context.new_cdp_session(self.page)
        session.on("Runtime.consoleAPICalled", self._on_console)
        session.on("Runtime.exceptionThrown", self._on_exception)
        session.send("Runtime.enable")
        session.send("Runtime.setAsyncCallStackDepth", {"maxDepth": 32})

    def _on_request(self, request: Request) -> None:
        if request.url.endswith("/cluster/queue"):
            self.sent.append(dict(request.post_data_json or {}))

    def _on_console(self, event: Mapping[str, Any]) -> None:
        if event["type"] in ("warning", "error", "assert"):
            self._note(json.dumps(event["args"]), event.get("stackTrace"))

    def _on_exception(self, event: Mapping[str, Any]) -> None:
        details = event["exceptionDetails"]
        text = json.dumps([details["text"], details.get("exception")])
        self._note(text, details.get("stackTrace"))

    def _note(self, text: str, stack: Mapping[str, Any] | None) -> None:
        """Keeps it if one of our files is in it or among its callers, also across an `await`."""
        urls = []
        while stack is not None:
            urls += [str(frame["url"]) for frame in stack["callFrames"]]
            stack = stack.get("parent")
        if any(self.extension_path in each for each in (text, *urls)):
            self.troubles.append(text)

    def use_nodes_2(self, is_on: bool) -> None:
        """Nodes 2.0, or else the classic canvas."""
        self._set("Comfy.VueNodes.Enabled", is_on)

    def _set(self, setting: str, value: object) -> None:
        script = "([id, value]) => app.extensionManager.setting.set(id, value)"
        self.page.evaluate(script, [setting, value])

    def load(self, workflow: Workflow) -> None:
        """Shows a workflow, with nothing left of what was done before."""
        self.page.keyboard.press("Escape")
        self.answer_again()
        self.set_batch_count(1)
        self.page.evaluate(_CLOSE_NOTICES)
        expect(self._notices()).to_have_count(0, timeout=WAIT_MS)
        self.page.evaluate(_LOAD_WORKFLOW, workflow)
        self.sent.clear()

    def set_batch_count(self, count: int) -> None:
        self.page.evaluate("n => { app.extensionManager.queueSettings.batchCount = n }", count)

    def answer_with(self, status: int, body: object) -> None:
        """Lets the next requests be answered so, in the place of ComfyUI."""

        def fulfil(route: Route) -> None:
            route.fulfill(status=status, json=body)

        self.page.route(_QUEUE_URL, fulfil)

    def lose_requests(self) -> None:
        """Lets the next requests get no answer."""
        self.page.route(_QUEUE_URL, lambda route: route.abort())

    def answer_again(self) -> None:
        """Lets ComfyUI answer."""
        self.page.unroute_all(behavior="ignoreErrors")

    def run(self, command: str, *, times: int = 1) -> None:
        """Runs a command and waits for its end; several times at once, if wanted."""
        self.page.evaluate(_RUN_COMMAND, [command, times])

    def prompt(self) -> dict[str, Any]:
        """What the workflow on screen is as a prompt, now."""
        prompt: dict[str, Any] = self.page.evaluate("app.graphToPrompt().then(each => each.output)")
        return prompt

    @property
    def client_id(self) -> str:
        # Both frontends keep this way to what extensions import, for old extensions.
        return str(self.page.evaluate("window.comfyAPI.api.api.clientId"))

    def wait_for_notice(self, *texts: str) -> None:
        """Waits until one notice has all these texts in it; upper case counts."""
        notice = self._notices()
        for text in texts:
            notice = notice.filter(has_text=_exactly(text))
        expect(notice).to_be_visible(timeout=WAIT_MS)

    def notices(self) -> list[str]:
        """The texts of all that are on screen."""
        return self._notices().all_inner_texts()

    def _notices(self) -> Locator:
        return self.page.locator(_NOTICE)

    def wait_for_text(self, text: str) -> None:
        """Waits until it is seen anywhere on the page."""
        expect(self.page.get_by_text(text).first).to_be_visible(timeout=WAIT_MS)

    def has_action_button(self) -> bool:
        return self._action_button().count() == 1

    def click_action_button(self) -> None:
        """Beside the Run button."""
        self._action_button().click()

    def _action_button(self) -> Locator:
        return self.page.get_by_test_id("action-bar-buttons").get_by_text(LABEL, exact=True)

    def click_menu_entry(self) -> None:
        """Opens ComfyUI's menu and goes down to our entry."""
        self.page.locator(_MENU).first.click()
        for name in ("Extensions", "Cluster"):  # of two "Extensions" the first is the submenu
            self.page.get_by_role("menuitem", name=name, exact=True).first.hover()
        self.page.get_by_role("menuitem", name=LABEL, exact=True).click()

    def wait_for_image(self, node_id: int) -> None:
        """Waits until the page has got the images of a node's result."""
        self._wait_for("id => app.nodeOutputs?.[id]?.images?.length > 0", str(node_id))

    def marked_nodes(self) -> list[int]:
        """Nodes that are shown as wrong on the classic canvas."""
        script = "app.graph.nodes.filter(each => each.has_errors).map(each => Number(each.id))"
        marked: list[int] = self.page.evaluate(script)
        return marked

    def selected_nodes(self) -> list[int]:
        script = "[...app.canvas.selectedItems].map(each => Number(each.id))"
        selected: list[int] = self.page.evaluate(script)
        return selected

    def _wait_for(self, script: str, argument: object, *, timeout_ms: float = WAIT_MS) -> None:
        self.page.wait_for_function(script, arg=argument, timeout=timeout_ms)


def _exactly(text: str) -> re.Pattern[str]:
    """A text itself would be looked for without regard to upper and lower case."""
    return re.compile(re.escape(text))
