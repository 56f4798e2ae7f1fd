"""The web page in a browser: the blocks of the context, the status, the keyboard and small windows."""

from __future__ import annotations

import time

import pytest

from freehold.server.app import create_app
from support.fake_backend import Script
from support.page_backend import BLOCK_TOKENS, PageBackend
from support.page_browser import answered, say, wait

WORDS = [f"word{number} ".encode() for number in range(12)]
LONG = "a long question " * 10  # 167 tokens of "user: ...\n", the space at its end left out


def cell_colour(page, block):
    """The colour in the middle of a cell, as the canvas has it."""
    return page.locator("#blocks").evaluate(
        """(canvas, block) => {
          const scale = canvas.width / canvas.clientWidth, pitch = 16;
          const columns = Math.floor(canvas.parentElement.clientWidth / pitch);
          const [x, y] = [(block % columns) * pitch + 6, Math.floor(block / columns) * pitch + 6];
          return [...canvas.getContext("2d").getImageData(x * scale, y * scale, 1, 1).data].join(",");
        }""",
        block,
    )


def caption(page, text):
    page.locator("#strip-caption", has_text=text).wait_for()
    return page.locator("#strip-caption").inner_text()


def test_a_token_under_the_pointer_marks_the_blocks_that_it_read(visit):
    backend = PageBackend(Script(WORDS), cached_tokens=32)
    # What this test does to the canvas is slow, and the browser says so.
    with visit(create_app(backend), expected="willReadFrequently") as page:
        say(page, LONG)
        answer = answered(page)
        caption(page, "Point at a word")
        assert page.locator("#legend li").all_inner_texts() == ["2 from cache", "8 read now", "2 written now"]
        before = [cell_colour(page, block) for block in range(12)]
        assert before[0] == before[1] != before[2]
        answer.locator(".t[data-token='4']").hover()
        # The prompt has 166 tokens: the query of token 4 is token 169, in block 10; 1 + 4 % 3 is 2.
        assert "read 3 blocks: 0, 2, 10" in caption(page, "word4")
        assert page.locator("#blocks").get_attribute("data-marked") == "0,2,10"
        changed = [cell_colour(page, block) for block in range(12)]
        assert all(now != then for now, then in zip(changed, before, strict=True))
        assert changed[0].split(",")[3] == "255"
        assert answer.locator(".t.current").inner_text().strip() == "word4"
        assert page.locator(".message.user.source").count() == 1
        page.locator("#model").hover()
        caption(page, "Point at a word")
        assert [cell_colour(page, block) for block in range(12)] == before
        assert page.locator(".message.source").count() == 0


def test_the_reads_of_a_token_go_to_the_messages_of_its_blocks(visit):
    with visit(create_app(PageBackend(Script(WORDS)))) as page:
        page.click("#open-settings")
        page.get_by_label("System prompt").fill("s" * 40)
        page.click("#open-settings")
        say(page, "q" * 100)
        answer = answered(page)
        answer.locator(".t[data-token='0']").hover()
        # Token 0 reads block 0 (of the system prompt) twice, block 1 (of it too) and block 9 (of the question).
        text = caption(page, "word0")
        assert "the system prompt 75 %" in text
        assert "message 1 (you) 25 %" in text or "message 1 (you) " in text


def test_the_keyboard_goes_through_the_tokens(visit):
    with visit(create_app(PageBackend(Script(WORDS)))) as page:
        say(page, LONG)
        body = answered(page).locator("> .body")
        body.focus()
        page.keyboard.press("ArrowRight")
        assert "read 2 blocks: 0, 1" in caption(page, "word0") or "blocks: 0, 1, 10" in caption(page, "word0")
        page.keyboard.press("End")
        caption(page, "word11")
        page.keyboard.press("ArrowLeft")
        caption(page, "word10")
        page.keyboard.press("Escape")
        caption(page, "Point at a word")


def test_a_block_marks_the_tokens_that_read_it(visit):
    with visit(create_app(PageBackend(Script(WORDS)))) as page:
        say(page, LONG)
        answer = answered(page)
        page.locator("#blocks").focus()
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        assert "tokens 32 to 47, read now, message 1 (you); read for 4 tokens" in caption(page, "Block 2")
        readers = answer.locator(".t.reader").evaluate_all("nodes => nodes.map((n) => Number(n.dataset.token))")
        assert readers == [1, 4, 7, 10]


def test_a_dense_model_reads_everything_and_the_page_says_so(visit):
    with visit(create_app(PageBackend(Script(WORDS), sparse_layers=0))) as page:
        say(page, LONG)
        answer = answered(page)
        caption(page, "Dense model: every token reads everything")
        answer.locator(".t[data-token='4']").hover()
        caption(page, "“word4 ”. Dense model: every token reads everything")
        assert page.locator(".message.source").count() == 0


def test_the_reading_of_the_prompt_is_shown_and_asked_for_only_while_it_lasts(visit):
    backend = PageBackend(Script([b"tick "] * 60, prefill=2.5, prefill_steps=10, delay=0.02))
    with visit(create_app(backend)) as page:
        asked = []
        page.on("request", lambda request: asked.append(request.url) if "/v1/requests" in request.url else None)
        say(page, LONG)
        wait(page, "(document.querySelector('.answer progress')?.value ?? 0) > 0.3")
        assert "of 166 tokens" in page.locator(".progress").inner_text()
        assert "to be read" in page.locator("#legend").inner_text()
        wait(page, "document.querySelector('.answer > .body').textContent.startsWith('tick')")
        assert page.locator(".progress").is_hidden()
        page.wait_for_timeout(100)
        polls = len(asked)
        answered(page)
        assert polls >= 3
        assert len(asked) == polls


def test_many_blocks_stay_fast(visit):
    backend = PageBackend(Script(WORDS), context_length=200_000)
    with visit(create_app(backend)) as page:
        say(page, "x" * (8192 * BLOCK_TOKENS - 100))
        answered(page)
        assert "8,1" in caption(page, "blocks of 16 tokens")
        page.locator(".answer .t[data-token='3']").hover()
        caption(page, "word3")
        # Pointing at another token, drawn: well within what people take for at once.
        taken = page.evaluate(
            """async () => {
              const tokens = [...document.querySelectorAll(".answer .t")], began = performance.now();
              for (const token of tokens) {
                token.dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
                await new Promise(requestAnimationFrame);
                await new Promise(requestAnimationFrame);
              }
              return (performance.now() - began) / tokens.length;
            }"""
        )
        assert taken < 150  # two frames of 16 ms, and room for a busy machine


def test_the_status_shows_what_runs_and_ends_it(visit, until):
    backend = PageBackend(Script([b"x"] * 1000, prefill=30, prefill_steps=100))
    backend.counters |= {
        "cache_blocks": 100,
        "cache_blocks_free": 60,
        "cache_blocks_kept": 30,
        "store_bytes": 3 * 2**20,
    }
    with visit(create_app(backend)) as page:
        say(page, "hello there")
        page.click("#open-status")
        status = page.locator("#status")
        status.get_by_text("reads its prompt").wait_for()
        assert status.get_by_text("fake/model").count() == 1
        assert status.get_by_text("4,096 tokens").count() == 1
        assert status.locator(".legend").all_inner_texts() == ["10 in use\n30 kept\n60 free"]
        assert "3 MiB" in status.inner_text()
        assert status.locator(".egress").inner_text() == "not sealed"
        status.get_by_role("button", name="Cancel the request").click()
        until(lambda: backend.streams[0].was_cut_short)
        page.locator(".state.failed").wait_for()
        status.get_by_text("none").wait_for()


def test_the_status_is_asked_for_only_while_it_is_seen(visit):
    with visit(create_app(PageBackend())) as page:
        asked = []
        page.on("request", lambda request: asked.append(request.url) if "/health" in request.url else None)
        page.get_by_text("fake/model").wait_for()
        asked.clear()
        page.wait_for_timeout(500)
        assert asked == []
        page.click("#open-status")
        began = time.monotonic()
        while len(asked) < 2:
            page.wait_for_timeout(50)
        assert time.monotonic() - began > 1.5
        page.click("#open-status")
        polls = len(asked)
        page.wait_for_timeout(2600)
        assert len(asked) == polls


def test_everything_works_with_the_keyboard_alone(visit):
    backend = PageBackend(Script(WORDS))
    with visit(create_app(backend), viewport={"width": 1200, "height": 800}) as page:
        page.get_by_text("fake/model").wait_for()
        page.keyboard.type("first line")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("second line")
        page.keyboard.press("Enter")
        answered(page)
        seen = set()
        for _ in range(40):
            page.keyboard.press("Tab")
            name, outline = page.evaluate(
                """() => {
                  const node = document.activeElement;
                  const name = node.id || node.ariaLabel || node.textContent.trim();
                  return [name.slice(0, 40), getComputedStyle(node).outlineStyle];
                }"""
            )
            if name and page.evaluate("document.activeElement !== document.body"):
                assert outline != "none", name
                seen.add(name)
        wanted = {"open-chats", "open-settings", "open-status", "new-chat", "Edit this message", "Regenerate", "blocks"}
        assert wanted <= seen, seen
        page.locator("#open-status").focus()
        page.keyboard.press("Enter")
        page.locator("#status").wait_for()
        page.locator("#open-settings").focus()
        page.keyboard.press("Enter")
        assert page.locator("#status").is_hidden()
        page.get_by_label("Top k").focus()
        page.keyboard.press("Escape")
        assert page.locator("#settings").is_hidden()
        assert page.evaluate("document.activeElement.id") == "open-settings"
    assert backend.conversations[0].messages[0]["content"] == "first line\nsecond line"


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_is_wider_than_the_window(visit, width):
    row = "| cell " * 30 + "|\n"
    text = "A " + "w" * 200 + "\n\n```\n" + "c" * 300 + "\n```\n\n" + row + row.replace("cell", "---")
    backend = PageBackend(Script([text.encode()]))
    with visit(create_app(backend), viewport={"width": width, "height": 700}) as page:
        say(page, "u" * 300)
        answered(page)
        for panel in ("", "#open-chats", "#open-settings", "#open-status"):
            if panel:
                page.click(panel)
                page.wait_for_timeout(100)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, panel
            assert page.locator("#thread").evaluate("n => n.scrollWidth - n.clientWidth") <= 0
            if panel:
                page.click(panel)


def test_motion_stops_where_it_is_not_wanted(visit):
    backend = PageBackend(Script([b"tick "] * 500, delay=0.02))
    with visit(create_app(backend), reduced_motion="reduce") as page:
        say(page, "go")
        page.locator(".answer > .body p").wait_for()
        running = page.evaluate("document.getAnimations().length")
        page.click("#stop")
        assert running == 0
