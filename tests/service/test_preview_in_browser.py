"""The preview of a finished build as a person sees it, in a real browser."""

import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from playwright.async_api import (
    Browser,
    ConsoleMessage,
    Dialog,
    Error,
    Page,
    async_playwright,
    expect,
)

from service.settings import RunnerKind
from tests.service.instances import Running, running_instance, visitor, whole_stream

pytestmark = pytest.mark.anyio

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
async def browser(anyio_backend: str) -> AsyncIterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("this machine has no chromium")
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield started
        await started.close()


@pytest.fixture(scope="module")
async def builder(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Running]:
    """An instance that builds real apps."""
    async with running_instance(tmp_path_factory.mktemp("home"), RunnerKind.TEMPLATE) as started:
        yield started


@dataclass
class Watched:
    """A page, and what a person would not want to see on it. Playwright adds attributes to it."""

    page: Page
    faults: list[str] = field(default_factory=list)

    def note_console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.faults.append(message.text)

    def note_error(self, error: Error) -> None:
        self.faults.append(str(error))

    async def note_dialog(self, dialog: Dialog) -> None:
        self.faults.append(f"dialog: {dialog.message}")
        await dialog.dismiss()


@pytest.fixture
async def watched(browser: Browser) -> AsyncIterator[Watched]:
    async with await browser.new_context() as context:
        seen = Watched(await context.new_page())
        seen.page.on("console", seen.note_console)
        seen.page.on("pageerror", seen.note_error)
        seen.page.on("dialog", seen.note_dialog)
        yield seen


async def built(builder: Running, goal: str) -> str:
    """The preview of a build of `goal`."""
    async with visitor(builder.instance.url, builder.instance.key) as client:
        accepted = await client.post("/v1/jobs", json={"goal": goal})
        messages = await whole_stream(client, accepted.json()["job_id"])
    url: str = messages[-1].data["data"]["preview_url"]
    return url


async def test_what_a_person_adds_and_checks_off_is_still_there_after_a_reload(
    builder: Running, watched: Watched
) -> None:
    page = watched.page
    await page.goto(await built(builder, "a todo list"))
    await page.get_by_placeholder("What needs doing?").fill("Buy milk & <bread>")
    await page.get_by_role("button", name="Add").click()
    entry = page.get_by_role("checkbox", name="Buy milk & <bread>")
    await expect(entry).not_to_be_checked()
    async with page.expect_response(lambda answer: answer.request.method == "PATCH") as saved:
        await entry.check()
    assert (await saved.value).ok
    await page.reload()
    await expect(entry).to_be_checked()
    await expect(page.get_by_text("1/1")).to_be_visible()
    assert watched.faults == []


async def test_a_goal_with_a_script_in_it_is_shown_and_not_run(
    builder: Running, watched: Watched
) -> None:
    goal = "<script>alert(1)</script> todo"
    await watched.page.goto(await built(builder, goal))
    await expect(watched.page.get_by_text("<script>alert(1)</script>").first).to_be_visible()
    await expect(watched.page.get_by_role("button", name="Add")).to_be_visible()
    assert await watched.page.locator("script", has_text="alert").count() == 0
    assert watched.faults == []
