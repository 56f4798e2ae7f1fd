"""The web page in a browser: asking, and everything around it."""

from __future__ import annotations

import itertools
import re
from random import Random

import pytest

from freehold.model.answers.json_calls import JsonCallParser
from freehold.server.app import create_app
from support.fake_backend import Script
from support.page_backend import PageBackend
from support.page_browser import answered, drop, say, wait

HELLO = "Hello, world"


def script(*tokens: str, **how) -> Script:
    return Script([token.encode() for token in tokens], **how)


def messages(backend: PageBackend, number: int = -1) -> list[tuple[str, str]]:
    return [(m["role"], m["content"]) for m in backend.conversations[number].messages]


def slow(count: int = 2000) -> Script:
    return Script([b"tick "] * count, delay=0.02)


def test_an_answer_streams(visit):
    backend = PageBackend(script("One", " two", " three", delay=0.3))
    with visit(create_app(backend)) as page:
        say(page, "count")
        body = page.locator(".message.answer .body").last
        wait(page, "document.querySelector('.answer > .body').textContent === 'One two'")
        assert page.locator("#stop").is_visible()
        answered(page)
        assert body.inner_text() == "One two three"
        assert "3 tokens" in page.locator(".state").inner_text()
    assert messages(backend) == [("user", "count")]


def test_stop_keeps_what_came_and_ends_the_work(visit, until):
    backend = PageBackend(slow())
    with visit(create_app(backend)) as page:
        say(page, "go")
        wait(page, "document.querySelector('.answer > .body').textContent.includes('tick tick')")
        page.click("#stop")
        page.locator(".state.stopped").wait_for()
        assert page.locator(".answer > .body").inner_text().startswith("tick tick")
        assert page.locator("#prompt").evaluate("n => n === document.activeElement")
        until(lambda: backend.streams[0].was_cut_short)


def test_regenerate_asks_the_same_again(visit):
    backend = PageBackend()
    with visit(create_app(backend)) as page:
        say(page, "hi")
        answered(page).get_by_text("Regenerate").click()
        wait(page, "document.querySelectorAll('.state.done').length === 1")
        answered(page)
        assert page.locator(".message").count() == 2
    assert messages(backend, 0) == messages(backend, 1) == [("user", "hi")]


def test_an_edited_message_begins_anew_from_there(visit):
    backend = PageBackend()
    with visit(create_app(backend)) as page:
        say(page, "first")
        answered(page)
        say(page, "second")
        answered(page, 2)
        page.locator(".message.user").first.hover()
        page.locator(".message.user").first.get_by_text("Edit").click()
        page.locator(".edit textarea").fill("first, better")
        page.locator(".edit textarea").press("Enter")
        wait(page, "document.querySelectorAll('.message').length === 2")
        answered(page)
        assert page.locator(".said").inner_text() == "first, better"
    assert messages(backend, 1) == [("user", "first"), ("assistant", HELLO), ("user", "second")]
    assert messages(backend, 2) == [("user", "first, better")]


def test_dropped_files_arrive_with_their_names_behind_fences_of_their_own(visit):
    backend = PageBackend()
    with visit(create_app(backend)) as page:
        drop(page, ("notes.txt", "text/plain", "alpha\nbeta\n"), ("a.md", "text/markdown", "```\ncode\n```"))
        page.locator("#files li").nth(1).wait_for()
        say(page, "read these")
        answered(page)
        assert page.locator(".file summary span").all_inner_texts() == ["notes.txt", "a.md"]
    (_, content), *rest = messages(backend)
    assert rest == []
    assert content == "read these\n\nFile notes.txt:\n```\nalpha\nbeta\n```\n\nFile a.md:\n````\n```\ncode\n```\n````"


def test_picked_files_can_be_removed_again(visit):
    backend = PageBackend()
    with visit(create_app(backend)) as page:
        page.set_input_files("#picker", [{"name": n, "mimeType": "text/plain", "buffer": b"x"} for n in ("a", "b")])
        page.get_by_label("Remove a", exact=True).click()
        say(page, "hi")
        answered(page)
    assert messages(backend) == [("user", "hi\n\nFile b:\n```\nx\n```")]


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        (("cat.png", "image/png", "\x89PNG"), "cat.png is an image; this model takes text only."),
        (("tool.exe", "", "MZ\0\0"), "tool.exe is not a text file in UTF-8."),
        (("big.log", "text/plain", "x" * (2**21 + 1)), "big.log has 2 MiB; a file may have 2 MiB."),
    ],
    ids=["image", "binary", "large"],
)
def test_files_that_cannot_be_sent_are_refused_by_name(visit, file, problem):
    with visit(create_app(PageBackend())) as page:
        drop(page, file)
        page.locator("#notice").wait_for()
        assert page.locator("#notice").inner_text() == problem
        assert page.locator("#files").is_hidden()


def test_images_are_taken_where_the_model_says_so(visit):
    with visit(create_app(PageBackend())) as page:
        page.route(
            "**/v1/models", lambda route: route.fulfill(json={"data": [{**CARD, "input_modalities": ["image"]}]})
        )
        page.reload()
        page.get_by_text("fake/model").wait_for()
        drop(page, ("cat.png", "image/png", "\x89PNG"))
        page.locator("#files li").wait_for()
        assert page.locator("#notice").is_hidden()


CARD = {"id": "fake/model", "object": "model", "created": 1, "owned_by": "freehold", "context_length": 4096}


def test_reasoning_is_folded_apart(visit):
    tokens = ["<think>", "Let", " me", " see", "</think>", "It", " is", " four."]
    backend = PageBackend(script(*tokens), parser=lambda: JsonCallParser(start="either"))
    with visit(create_app(backend)) as page:
        say(page, "two and two?")
        answer = answered(page)
        assert answer.locator("> .body").inner_text() == "It is four."
        fold = answer.locator("details.reasoning")
        assert fold.get_attribute("open") is None
        assert fold.locator(".body").is_hidden()
        fold.locator("summary").click()
        assert fold.locator(".body").inner_text() == "Let me see"
        # Each word knows its token, although the markers were left out.
        assert fold.locator(".t[data-token='2']").inner_text().strip() == "me"
        assert answer.locator("> .body .t[data-token='7']").inner_text().strip() == "four."
        say(page, "sure?")
        answered(page, 2)
    assert backend.conversations[1].messages[1]["reasoning_content"] == "Let me see"


def test_tool_calls_are_shown(visit):
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    backend = PageBackend(script(*call), parser=lambda: JsonCallParser(start="text"))
    with visit(create_app(backend)) as page:
        say(page, "weather?")
        answer = answered(page)
        assert answer.locator(".call code").inner_text() == "weather"
        assert re.sub(r"\s", "", answer.locator(".call pre").inner_text()) == '{"city":"Oslo"}'


def test_settings_and_system_prompt_go_with_the_request(visit):
    backend = PageBackend()
    with visit(create_app(backend)) as page:
        page.click("#open-settings")
        page.get_by_label("System prompt").fill("Be brief.")
        page.get_by_label("Temperature").fill("0.25")
        page.get_by_label("Top k").fill("7")
        page.get_by_label("Stop texts").fill("END\nSTOP")
        say(page, "hi")
        answered(page)
        page.reload()
        page.click("#open-settings")
        assert page.get_by_label("Temperature").input_value() == "0.25"
    params = backend.streams[0].params
    assert (params.temperature, params.top_k, params.stop) == (0.25, 7, ("END", "STOP"))
    assert messages(backend) == [("system", "Be brief."), ("user", "hi")]


def test_what_the_server_refuses_is_said_in_its_words(visit):
    with visit(create_app(PageBackend(context_length=8)), expected="status of 400") as page:
        say(page, "longer than eight")
        failed = page.locator(".state.failed")
        failed.wait_for()
        assert "the context holds 8" in failed.inner_text()
        assert page.locator("#send").is_visible()


def test_an_answer_that_breaks_off_says_so(visit):
    backend = PageBackend(script("Some", " text", crash=RuntimeError("boom")))
    with visit(create_app(backend)) as page:
        say(page, "hi")
        page.locator(".state.failed").wait_for()
        assert "internal error" in page.locator(".state.failed").inner_text()
        assert page.locator(".answer > .body").inner_text() == "Some text"


def test_conversations_are_kept_until_that_is_switched_off(visit):
    backend = PageBackend()
    with visit(create_app(backend), viewport={"width": 1200, "height": 800}) as page:
        say(page, "the first one")
        answered(page)
        page.click("#new-chat")
        say(page, "the second one")
        answered(page)
        page.reload()
        assert page.locator(".chat").all_inner_texts() == ["the second one", "the first one"]
        page.get_by_role("button", name="the first one", exact=True).click()
        assert page.locator(".said").inner_text() == "the first one"
        assert page.locator(".answer > .body").inner_text() == HELLO
        page.click("#open-settings")
        page.get_by_label("Keep conversations").uncheck()
        assert page.evaluate("Object.keys(localStorage).filter((n) => n.includes('chat')).length") == 0
        page.reload()
        assert page.locator(".chat").count() == 0


def test_a_deleted_conversation_can_be_brought_back(visit):
    with visit(create_app(PageBackend()), viewport={"width": 1200, "height": 800}) as page:
        say(page, "precious")
        answered(page)
        page.get_by_label("Delete precious").click()
        assert page.locator(".message").count() == 0
        page.get_by_role("button", name="Undo").click()
        assert page.locator(".said").inner_text() == "precious"
        page.reload()
        assert page.locator(".chat").all_inner_texts() == ["precious"]


def test_markdown_becomes_elements(visit):
    text = "# Title\n\nSome **strong** and *fine* `code`.\n\n- one\n- two\n  1. deep\n\n```py\nx = 1\n\ny = 2\n```\n\n"
    text += "| a | b |\n|---|---|\n| 1 | 2 |\n\n2 * 3 * 4 = snake_case_name\n\n> said\n"
    with visit(create_app(PageBackend(script(*re.findall(r"\s*\S+|\s+", text))))) as page:
        say(page, "show")
        body = answered(page).locator("> .body")
        assert body.locator("h3").inner_text() == "Title"
        assert body.locator("p strong").inner_text() == "strong"
        assert body.locator("p em").inner_text() == "fine"
        assert body.locator("p code").inner_text() == "code"
        assert body.locator("> ul > li").count() == 2
        assert body.locator("ul ol li").inner_text() == "deep"
        assert body.locator("pre code").text_content() == "x = 1\n\ny = 2"
        assert body.locator("td").all_inner_texts() == ["1", "2"]
        assert body.get_by_text("2 * 3 * 4 = snake_case_name").count() == 1
        assert body.locator("blockquote").inner_text() == "said"


RENDER = """async (texts) => {
  const { blocksOf, renderBlock } = await import("./page/markdown.js");
  return texts.map((text) => {
    const places = [], said = [];
    for (const block of blocksOf(text)) {
      if (block.language) said.push(block.language);
      renderBlock(text, block, (parent, start, end) => {
        places.push([start, end]);
        said.push(text.slice(start, end));
      });
    }
    return [places, said.join("")];
  });
}"""


def test_no_letter_is_lost_or_shown_twice_whatever_the_marks(visit):
    random = Random(7)
    marks = [
        "*",
        "**",
        "_",
        "`",
        "``",
        "```",
        "\n",
        "\n\n",
        "\n```\n",
        "\n- ",
        "\n 2. ",
        "\n# ",
        "\n> ",
        "|",
        "\n|--|\n",
        "\\",
        " ",
        "   ",
    ]
    texts = [
        "".join(random.choice(marks) if random.random() < 0.6 else "abcü"[i % 4] for i in range(60))
        for _ in range(1000)
    ]
    with visit(create_app(PageBackend())) as page:
        rendered = page.evaluate(RENDER, texts)
    for text, (places, said) in zip(texts, rendered, strict=True):
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(places)), text
        assert re.sub(r"[^abcü]", "", said) == re.sub(r"[^abcü]", "", text), text


def test_code_can_be_copied(visit):
    backend = PageBackend(script("```sh\n", "echo", " hi\n", "```"))
    with visit(create_app(backend), permissions=["clipboard-read", "clipboard-write"]) as page:
        say(page, "how?")
        answered(page).get_by_label("Copy the code").click()
        page.get_by_text("Copied").first.wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == "echo hi"


ATTACK = "<img src=x onerror=alert(1)><script>alert(2)</script>"


@pytest.mark.parametrize(
    "text",
    [
        ATTACK,
        f"```html\n{ATTACK}\n```",
        f"`{ATTACK}` **{ATTACK}**\n\n# {ATTACK}\n\n- {ATTACK}\n\n| {ATTACK} |\n|---|\n| {ATTACK} |",
        f"```{ATTACK}\nx\n```",
        "[click](javascript:alert(1)) ![p](http://192.0.2.1/p.png) <a href='http://192.0.2.1/'>x</a>",
    ],
    ids=["plain", "fence", "inline", "language", "links"],
)
def test_markup_in_an_answer_stays_text(visit, text):
    with visit(create_app(PageBackend(script(*re.findall(r".{1,5}|\n", text))))) as page:
        page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
        say(page, text)
        answer = answered(page)
        assert answer.locator("img, script, a, iframe").count() == 0
        assert page.locator("#thread").locator("img, script, a").count() == 0
        assert answer.locator("> .body").text_content().count("<") >= text.count("<") // 2


def test_markup_in_names_of_files_and_models_stays_text(visit):
    backend = PageBackend()
    backend.model_name = ATTACK
    with visit(create_app(backend)) as page:
        page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
        drop(page, (ATTACK.replace("/", "_"), "text/plain", ATTACK))
        page.locator("#files li").wait_for()
        say(page, "hi")
        answered(page)
        page.click("#open-status")
        page.locator("#status dd").first.wait_for()
        assert page.locator("#model").inner_text() == ATTACK
        assert page.locator("img, body script").count() == 0


def test_the_key_is_asked_for_once_and_not_kept_longer_than_the_tab(visit, running, browser):
    backend = PageBackend()
    app = create_app(backend, api_key="sesame")
    options = {"http_credentials": {"username": "me", "password": "sesame"}, "expected": "status of 401"}
    with visit(app, **options) as page:
        page.locator("#key").wait_for()
        page.fill("#key", "wrong")
        page.press("#key", "Enter")
        page.get_by_text("missing or wrong API key").wait_for()
        page.fill("#key", "sesame")
        page.press("#key", "Enter")
        page.get_by_text("fake/model").wait_for()
        say(page, "hi")
        answered(page)
        page.reload()
        page.get_by_text("fake/model").wait_for()
        assert page.locator("#key-dialog").is_hidden()
        assert page.evaluate("JSON.stringify(localStorage)").count("sesame") == 0
        assert page.evaluate("sessionStorage.length") == 1
    assert backend.streams[0].client == ("key api-key", "")
