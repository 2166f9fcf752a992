"""Fixtures: a real ComfyUI for each frontend, and its page in Debian's or another Chromium.

What is missing here (ComfyUI, the browser, the frontends) skips the tests and says so.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.comfyui.instances import ComfyInstance
from tests.comfyui.place import ComfyUnavailable, find_comfyui
from tests.web.frontends import NEWEST, OLDEST, Frontend, FrontendUnavailable, fetch

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.web.pages import ComfyPage

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PACK = "comfy-cluster"
SCREENSHOTS_VARIABLE = "CLUSTER_WEB_SCREENSHOTS"
"""A folder; set it to look at the pages yourself."""
_CHROMIUM_OPTIONS = [
    "--no-sandbox",  # tests run as root in containers
    # ComfyUI's page asks for fonts, models and accounts elsewhere.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
_FRONTENDS = (OLDEST, NEWEST)


@pytest.fixture(scope="session")
def browser_path() -> str:
    """The browser's program; asked for before anything is started."""
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = [path for path in map(shutil.which, BROWSERS) if path]
    if not found:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is there")
    return found[0]


@pytest.fixture(scope="session")
def instances(
    browser_path: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[Frontend, ComfyInstance]]:
    """Running ComfyUIs, each a cluster of one, by the frontend that they serve."""
    try:
        find_comfyui()
        roots = {frontend: fetch(frontend) for frontend in _FRONTENDS}
    except (ComfyUnavailable, FrontendUnavailable) as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("web")
    started = {
        frontend: _instance(folder / frontend.name, ["--front-end-root", str(root)])
        for frontend, root in roots.items()
    }
    try:
        for each in started.values():
            each.start()
        for each in started.values():
            each.wait_until_up()
        yield started
    finally:
        for each in started.values():
            each.kill()  # nothing of them is of use to anybody


def _instance(folder: Path, options: list[str]) -> ComfyInstance:
    instance = ComfyInstance(folder, options=options)
    # ComfyUI serves no page files of a pack whose folder's name has a space in it.
    packs = instance.folder / "custom_nodes"
    (packs / "my cluster nodes").rename(packs / PACK)
    settings = instance.folder / "user" / "default" / "comfy.settings.json"
    settings.write_text('{"Comfy.TutorialCompleted": true}')  # else it greets with its templates
    return instance


@pytest.fixture(scope="module")
def browser(browser_path: str) -> Iterator[Browser]:
    """One for the tests of a module: its event loop would disturb tests of other modules."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=browser_path, args=_CHROMIUM_OPTIONS)
        yield launched
        launched.close()


@pytest.fixture(scope="module", params=_FRONTENDS, ids=lambda each: each.name)
def frontend(request: pytest.FixtureRequest) -> Frontend:
    frontend: Frontend = request.param
    return frontend


@pytest.fixture(scope="module")
def opened(
    browser: Browser, instances: Mapping[Frontend, ComfyInstance], frontend: Frontend
) -> Iterator[ComfyPage]:
    """The page of one frontend; opening it takes seconds, so tests share it."""
    from tests.web.pages import ComfyPage

    context = browser.new_context(viewport={"width": 1400, "height": 900})
    path = f"/extensions/{PACK}/"
    yield ComfyPage.open(context, instances[frontend].client.url, extension_path=path)
    context.close()


@pytest.fixture(params=[False, True], ids=["classic", "nodes-2"])
def page(
    request: pytest.FixtureRequest, opened: ComfyPage, frontend: Frontend
) -> Iterator[ComfyPage]:
    """That page with either kind of canvas. Our files have caused no warning when it is left."""
    if request.param and not frontend.has_nodes_2:
        pytest.skip(f"frontend {frontend.name} has one kind of canvas")
    opened.use_nodes_2(request.param)
    opened.troubles.clear()
    yield opened
    if folder := os.environ.get(SCREENSHOTS_VARIABLE):
        opened.page.screenshot(path=f"{folder}/{request.node.name}.png")
    assert opened.troubles == []
