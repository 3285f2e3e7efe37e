"""Markdown as the chat page renders it: the right structure, and nothing that runs, whatever a model writes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from onebit.formats.web_folder import page_files

CASES = {
    "plain *soft* **bold** ~~gone~~ `a*b`": (
        "<p>plain <em>soft</em> <strong>bold</strong> <del>gone</del> <code>a*b</code></p>"
    ),
    "snake_case_name 2*3*4": "<p>snake_case_name 2*3*4</p>",
    "# One\n## Two": "<h3>One</h3><h4>Two</h4>",
    "- a\n- b\n  - c\n\nafter": "<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul><p>after</p>",
    "3. x\n4. y": '<ol start="3"><li>x</li><li>y</li></ol>',
    "> said\n> so\n\n---": "<blockquote><p>said\nso</p></blockquote><hr>",
    "| a | b |\n|---|--:|\n| 1 | `2` |": (
        '<div class="table" tabindex="0"><table><thead><tr><th>a</th><th>b</th></tr></thead>'
        "<tbody><tr><td>1</td><td><code>2</code></td></tr></tbody></table></div>"
    ),
    "```c\nint x = 1 < 2;\n```": (
        '<figure class="code"><figcaption>c</figcaption><pre tabindex="0"><code>int x = 1 &lt; 2;</code></pre></figure>'
    ),
    "```\nnot closed": (
        '<figure class="code"><figcaption>code</figcaption><pre tabindex="0"><code>not closed</code></pre></figure>'
    ),
}
HOSTILE = [
    "<script>window.ran = 1</script>",
    "<img src=x onerror='window.ran = 1'>",
    "[x](javascript:window.ran=1)",
    "[x](JaVaScRiPt:window.ran=1) [y](data:text/html,<script>window.ran=1</script>)",
    '[x](https://e.org/"onmouseover="window.ran=1)',
    '```html"><script>window.ran=1</script>\n<script>window.ran=1</script>\n```',
    "![x](https://example.org/tracker.png)",
    "| <script>window.ran=1</script> |\n|---|\n| <b onclick=alert(1)>x</b> |",
    "<svg/onload=window.ran=1> <iframe srcdoc='<script>parent.ran=1</script>'>",
]


@pytest.fixture(scope="module")
def page(browser: Any, serve: Callable[[Path], Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("markdown")
    for path in page_files():
        shutil.copy(path, folder)
    (folder / "blank.html").write_text("<!doctype html><title>blank</title><main></main>", encoding="utf-8")
    with serve(folder) as address:
        page = browser.new_page()
        page.goto(f"{address}/blank.html")
        yield page
        page.close()


def render(page: Any, text: str) -> str:
    script = """async (text) => {
      const { markdown } = await import('/markdown.js')
      const main = document.querySelector('main')
      main.replaceChildren(...markdown(text))
      await new Promise((resolve) => setTimeout(resolve, 20))
      return main.innerHTML
    }"""
    found: str = page.evaluate(script, text)
    return found


@pytest.mark.parametrize("text", CASES)
def test_structure(page: Any, text: str) -> None:
    assert render(page, text) == CASES[text]


def test_links_open_apart_and_only_to_the_web(page: Any) -> None:
    html = render(page, "see [this](https://example.org/a_b) or https://example.org/x.")
    assert html.count('rel="noopener noreferrer nofollow"') == 2
    assert 'href="https://example.org/x"' in html


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_a_model_writes_runs_or_loads(page: Any, text: str) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    render(page, text)
    assert page.evaluate("window.ran") is None
    assert page.locator("main :is(script, img, svg, iframe, object, embed, style, link)").count() == 0
    allowed = {"tabindex", "class", "href", "target", "rel", "start"}
    names = page.evaluate("[...document.querySelectorAll('main *')].flatMap((node) => node.getAttributeNames())")
    assert set(names) <= allowed
    links = page.evaluate("[...document.querySelectorAll('main a')].map((node) => node.protocol)")
    assert set(links) <= {"http:", "https:", "mailto:"}
    assert not [url for url in asked if "markdown.js" not in url]


def test_long_and_deep_texts_end_soon(page: Any) -> None:
    for text in ("**" * 4000, "[" * 8000, "`" * 8001, "> " * 300 + "x", "- " * 300, "*a " * 4000, "|" * 5000 + "\n|-"):
        took = page.evaluate(
            "async (text) => { const { markdown } = await import('/markdown.js'); const begin = performance.now();"
            " markdown(text); return performance.now() - begin }",
            text,
        )
        assert took < 1000, text[:10]
