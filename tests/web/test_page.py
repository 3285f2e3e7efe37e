"""The exported chat page in headless Chromium, from a plain file server: chat, stop, reload, keyboard, phone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from onebit.engine import Model
from onebit.formats import onebit_file
from onebit.formats.web_folder import write_web_folder
from onebit.serve.app import create_app
from onebit.serve.settings import ServeSettings

READY = "#send:not([disabled])"
BUSY = "article[aria-busy]"


@pytest.fixture(scope="module", params=["folder", "server"])
def address(
    request: pytest.FixtureRequest, chat_model: Path, tmp_path_factory: pytest.TempPathFactory, serve: Any, run_app: Any
) -> Iterator[str]:
    """Of the page with its model in the browser, and of the same page with answers from `onebit serve`."""
    if request.param == "folder":
        folder = tmp_path_factory.mktemp("web") / "page"
        write_web_folder(folder, onebit_file.read(chat_model), title="Random model")
        with serve(folder) as address:
            yield address
        return
    settings = ServeSettings(name="Random model", shutdown_seconds=1)
    with run_app(create_app(Model(chat_model, threads=1), settings)) as address:
        yield address


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """``open_page(**options of the browser's context)`` -> a page whose model is loaded; what it complains of fails the
    test, and so does a request to any other host."""
    contexts, problems = [], []

    def open_it(**options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1100, "height": 700}, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
        page.on(
            "request", lambda asked: None if asked.url.startswith((address, "data:")) else problems.append(asked.url)
        )
        page.goto(f"{address}/index.html")
        page.wait_for_selector(READY)
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert not problems


def set_longest(page: Any, tokens: int) -> None:
    page.click("#show-settings")
    page.fill("#set-maxNewTokens", str(tokens))
    page.click("#close")


def answers(page: Any) -> list[str]:
    return [text or "" for text in page.locator("article.assistant .body").all_text_contents()]


def test_a_whole_conversation(open_page: Callable[..., Any]) -> None:
    page = open_page()
    assert page.title() == "Random model"
    set_longest(page, 20)
    for text in ("first question", "and a second"):
        page.fill("#message", text)
        page.press("#message", "Enter")
        page.wait_for_selector(BUSY, state="detached")
        page.wait_for_selector(READY)
    assert page.locator("article.user .body").all_text_contents() == ["first question", "and a second"]
    assert page.locator("article").count() == 4
    assert re.search(
        r"20 tokens · \d+ tokens/s · the longest answer was reached",
        page.locator("article.assistant footer").last.inner_text(),
    )
    used = int(re.search(r"(\d+) of 8192", page.locator("#context-text").inner_text())[1])
    assert used > 60  # both questions, both answers
    assert page.locator("#conversations .open").all_text_contents() == ["first question"]
    assert page.locator("#status").inner_text() == "The answer is complete."


def test_an_answer_is_stopped_kept_over_a_reload_and_written_again(open_page: Callable[..., Any]) -> None:
    page = open_page()
    set_longest(page, 8000)
    page.fill("#message", "tell me everything")
    page.press("#message", "Enter")
    page.wait_for_selector(BUSY)
    for _ in range(200):
        if len(answers(page)[0]) > 40:
            break
        page.wait_for_timeout(25)
    assert page.locator("#send").is_hidden()
    page.click("#stop")
    page.wait_for_selector(BUSY, state="detached")
    first = answers(page)
    assert "stopped" in page.locator("article.assistant footer").inner_text()
    page.reload()
    page.wait_for_selector(READY)
    assert answers(page) == first
    set_longest(page, 12)
    page.click("text=Again")
    # 12 tokens may be there before anyone sees that they are being written
    page.wait_for_selector("article.assistant footer:has-text('12 tokens')")
    page.wait_for_selector(BUSY, state="detached")
    again = answers(page)
    assert len(again) == 1
    assert again != first


def test_conversations_are_kept_apart_and_deleted(open_page: Callable[..., Any]) -> None:
    page = open_page()
    set_longest(page, 4)
    for text in ("one", "two"):
        page.click("#new")
        page.fill("#message", text)
        page.press("#message", "Enter")
        page.wait_for_selector(BUSY, state="detached")
        page.wait_for_selector(READY)
    assert page.locator("#conversations .open").all_text_contents() == ["two", "one"]
    page.click("#conversations >> text=one")
    assert page.locator("article.user .body").all_text_contents() == ["one"]
    page.click("[aria-label='Delete “one”']")
    assert page.locator("article.user .body").all_text_contents() == ["two"]
    page.reload()
    page.wait_for_selector(READY)
    assert page.locator("#conversations .open").all_text_contents() == ["two"]


def test_the_same_seed_and_system_prompt_give_the_same_answer(open_page: Callable[..., Any]) -> None:
    found = []
    for system in ("Be brief.", "Be brief.", "Be long."):
        page = open_page()
        page.click("#show-settings")
        page.fill("#system", system)
        page.fill("#set-seed", "5")
        page.fill("#set-maxNewTokens", "24")
        page.click("#close")
        page.fill("#message", "hello")
        page.press("#message", "Enter")
        # 24 tokens may be there before anyone sees that they are being written
        page.wait_for_selector("article.assistant footer:has-text('24 tokens')")
        found += answers(page)
    assert found[0] == found[1] != found[2]


def test_by_keyboard_alone(open_page: Callable[..., Any]) -> None:
    page = open_page()
    assert page.evaluate("document.activeElement.id") == "message"
    page.keyboard.type("typed")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("on two lines")
    page.keyboard.press("Enter")
    page.wait_for_selector(BUSY)
    page.keyboard.press("Escape")
    page.wait_for_selector(BUSY, state="detached")
    assert page.locator("article.user .body").inner_text() == "typed\non two lines"
    reached = set()
    page.locator("body").press("Tab")
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert {"show-settings", "new", "thread", "message", "Copy", "Again"} <= reached
    page.focus("#show-settings")
    page.keyboard.press("Enter")
    assert page.locator("#settings").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("#settings").is_hidden()
    assert page.evaluate("document.activeElement.id") == "show-settings"


def test_on_a_phone(open_page: Callable[..., Any]) -> None:
    page = open_page(viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    set_longest(page, 8)
    page.fill("#message", "a" * 300)
    page.click("#send")
    page.wait_for_selector(BUSY, state="detached")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.locator("#list").is_hidden()
    page.click("#show-list")
    assert page.locator("#list").is_visible()
    assert page.locator("#show-list").get_attribute("aria-expanded") == "true"
    page.click("#new")
    assert page.locator("#list").is_hidden()


def test_copy_puts_the_message_into_the_clipboard(open_page: Callable[..., Any]) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    set_longest(page, 4)
    page.fill("#message", "copy <b>me</b>")
    page.press("#message", "Enter")
    page.wait_for_selector(BUSY, state="detached")
    page.click("article.user button")
    page.wait_for_selector("text=Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "copy <b>me</b>"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_finding_of_axe(open_page: Callable[..., Any], scheme: str) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="needs axe-playwright-python, of the extra dev"
    )
    page = open_page(color_scheme=scheme, bypass_csp=True)
    set_longest(page, 8)
    page.fill("#message", "hello")
    page.press("#message", "Enter")
    page.wait_for_selector(BUSY, state="detached")
    page.evaluate(
        "text => import('/markdown.js').then(({ markdown }) =>"
        " document.querySelector('article.assistant .body').append(...markdown(text)))",
        "# Head\n\ntext `code` [link](https://example.org)\n\n```c\nint x;\n```\n\n| a | b |\n|--|--|\n| 1 | 2 |",
    )
    for state in ("chat", "settings"):
        if state == "settings":
            page.click("#show-settings")
        found = [
            each for each in axe.Axe().run(page).response["violations"] if each["impact"] in ("serious", "critical")
        ]
        assert not found, [(each["id"], [node["html"] for node in each["nodes"]][:3]) for each in found]


@pytest.mark.parametrize("address", ["folder"], indirect=True)
def test_a_model_that_is_not_there_is_said_in_words(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.route("**/model.1bit", lambda route: route.fulfill(status=404, body="none"))
    page.goto(f"{address}/index.html")
    page.wait_for_selector("#loading.problem")
    assert "HTTP 404" in page.locator("#loading-text").inner_text()
    assert page.locator("#send").is_disabled()
    page.close()


@pytest.mark.parametrize("address", ["folder"], indirect=True)
def test_loading_shows_how_far_it_is(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.add_init_script("""
        window.seen = []
        new MutationObserver(() => window.seen.push(document.getElementById('loading-text')?.textContent))
          .observe(document, { subtree: true, childList: true, characterData: true })""")
    page.goto(f"{address}/index.html")
    page.wait_for_selector(READY)
    assert page.evaluate("window.seen.some((text) => /Loading the model: [\\d.]+ MB of [\\d.]+ MB/.test(text))")
    page.close()


def test_a_server_that_asks_for_a_key_gets_it(browser: Any, chat_model: Path, run_app: Any) -> None:
    settings = ServeSettings(name="Random model", api_key="k3y", shutdown_seconds=1)
    with run_app(create_app(Model(chat_model, threads=1), settings)) as address:
        page = browser.new_page()
        given = ["wrong", "k3y"]
        page.on("dialog", lambda dialog: dialog.accept(given.pop(0)))
        page.goto(f"{address}/")
        page.wait_for_selector(READY)
        set_longest(page, 3)
        page.fill("#message", "hello")
        page.press("#message", "Enter")
        page.wait_for_selector("article.assistant footer:has-text('3 tokens')")
        assert not given
        page.close()
