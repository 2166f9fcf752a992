"""The rendezvous server's status page in a real browser, with the words of the tests."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import requests
from playwright.sync_api import Browser, ConsoleMessage, Page, expect

from tests.web.conftest import SCREENSHOTS_VARIABLE

WAIT_MS = 30_000
"""A bound for what hangs, never waited for in a good run."""
# The browser's own lines about answers that are refusals, or do not come.
_NETWORK_LINE = "Failed to load resource"


@dataclass  # without slots: playwright keeps its wrappers of our methods on the object
class StatusPage:
    """One open status page."""

    page: Page
    urls: list[str] = field(default_factory=list)
    """All that the page has asked for."""
    troubles: list[str] = field(default_factory=list)
    """Warnings and errors of the console, and exceptions; among them what the policy forbids."""

    def listen(self) -> None:
        self.page.set_default_timeout(WAIT_MS)
        self.page.on("request", lambda request: self.urls.append(request.url))
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("dialog", lambda dialog: self.troubles.append(dialog.message))

    def _on_console(self, message: ConsoleMessage) -> None:
        is_network = message.text.startswith(_NETWORK_LINE)
        if message.type in ("warning", "error", "assert") and not is_network:
            self.troubles.append(message.text)

    def enter(self, key: str) -> None:
        self.page.get_by_label("Cluster key").fill(key)
        self.page.get_by_role("button", name="Open").click()

    def wait_for_headline(self, text: str | re.Pattern[str]) -> None:
        expect(self.page.locator("#headline")).to_have_text(text, timeout=WAIT_MS)

    def wait_for_trouble(self, text: str) -> None:
        """Waits until the entrance says so."""
        expect(self.page.get_by_role("alert")).to_contain_text(text, timeout=WAIT_MS)

    def wait_for_notice(self, text: str) -> None:
        notice = self.page.locator("#notice")
        expect(notice).to_contain_text(text, timeout=WAIT_MS)
        expect(notice).to_be_visible()

    def wait_for_no_notice(self) -> None:
        expect(self.page.locator("#notice")).to_be_hidden(timeout=WAIT_MS)

    def wait_for_events(self, *events: str) -> None:
        """Waits until these are the events on screen, the newest first."""
        shown = self.page.locator(".events-table tbody .event")
        expect(shown).to_have_text(list(events), timeout=WAIT_MS)

    def wait_for_entrance(self) -> None:
        expect(self.page.get_by_label("Cluster key")).to_be_visible(timeout=WAIT_MS)

    def instances(self) -> list[dict[str, str]]:
        """The rows on screen: the text of each cell by its column."""
        rows: list[dict[str, str]] = self.page.evaluate(
            """
            () => [...document.querySelectorAll(".instances tbody tr")].map(row =>
              Object.fromEntries([...row.children].map(cell =>
                [cell.dataset.label, cell.innerText.replace(/\\s+/g, " ").trim()])))
            """
        )
        return rows

    def set_hidden(self, is_hidden: bool) -> None:
        """What the browser does when another tab comes to the front, and back."""
        self.page.evaluate(
            """
            isHidden => {
              Object.defineProperty(document, "hidden", { value: isHidden, configurable: true });
              document.dispatchEvent(new Event("visibilitychange"));
            }
            """,
            is_hidden,
        )

    def stored(self) -> dict[str, dict[str, str]]:
        """What the page keeps in the browser."""
        kept: dict[str, dict[str, str]] = self.page.evaluate(
            "() => ({ session: { ...sessionStorage }, local: { ...localStorage } })"
        )
        return kept

    def screenshot(self, name: str) -> None:
        """For whoever wants to look, see `conftest.SCREENSHOTS_VARIABLE`."""
        if folder := os.environ.get(SCREENSHOTS_VARIABLE):
            self.page.screenshot(path=f"{folder}/{name}.png", full_page=True)


@contextmanager
def status_page(browser: Browser, url: str, **options: Any) -> Iterator[StatusPage]:
    """A page in a browser session of its own; it has caused no warning when it is left."""
    context = browser.new_context(**{"viewport": {"width": 1200, "height": 800}} | options)
    try:
        opened = StatusPage(context.new_page())
        opened.listen()
        opened.page.goto(url)
        yield opened
        assert opened.troubles == []
    finally:
        context.close()


@dataclass(frozen=True, slots=True)
class ClusterClient:
    """What the instances of one cluster ask a server."""

    url: str
    cluster_id: str
    key: str

    def register(self, instance_id: str, **changes: Any) -> None:
        body = {
            "boot_id": f"run-of-{instance_id}",
            "address": "192.0.2.10",
            "port": 9998,
            "role": "FOLLOWER",
        }
        self._ask("PUT", instance_id, json=body | changes)

    def heartbeat(self, instance_id: str) -> None:
        self._ask("POST", f"{instance_id}/heartbeat")

    @contextmanager
    def heartbeats(self, instance_id: str) -> Iterator[None]:
        """One after the other, as of an instance that runs."""
        is_over = threading.Event()

        def beat() -> None:
            while not is_over.is_set():
                self.heartbeat(instance_id)
                is_over.wait(0.5)

        beating = threading.Thread(target=beat)
        beating.start()
        try:
            yield
        finally:
            is_over.set()
            beating.join()

    def remove(self, instance_id: str) -> None:
        self._ask("DELETE", instance_id)

    def _ask(self, method: str, path: str, **options: Any) -> None:
        requests.request(
            method,
            f"{self.url}/v1/clusters/{self.cluster_id}/instances/{path}",
            headers={"X-Cluster-Key": self.key},
            timeout=10.0,
            **options,
        ).raise_for_status()
