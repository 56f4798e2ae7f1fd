"""The web page with the default model behind it."""

from __future__ import annotations

import pytest

from support.page_browser import answered, say


@pytest.mark.model
def test_the_default_model_answers_and_finds_its_prompt_again(visit, default_model):
    from freehold.cli.served_model import ServedModel
    from freehold.engine.llm import LLM
    from freehold.server.app import create_app

    with LLM(str(default_model)) as llm, ServedModel(llm) as backend, visit(create_app(backend)) as page:
        page.set_default_timeout(60_000)
        page.click("#open-settings")
        page.get_by_label("Temperature").fill("0")
        page.get_by_label("Most tokens").fill("12")
        page.keyboard.press("Tab")
        page.keyboard.press("Escape")
        say(page, "What is the capital of France? Answer in one sentence. " * 12)
        answer = answered(page)
        assert "Paris" in answer.locator("> .body").inner_text()
        tokens = answer.locator("> .body .t").all_inner_texts()
        assert "".join(tokens).strip() == answer.locator("> .body").inner_text().strip()
        assert len(tokens) > 3
        answer.locator("> .body .t").first.hover()
        dense = llm.generate("hi", max_tokens=1, provenance=True).provenance.tokens[0].layers == {}
        words = page.locator("#strip-caption").inner_text()
        assert ("Dense model" in words) == dense
        say(page, "And of Italy?")
        # Whole blocks of the first prompt, at least, are in the cache.
        page.locator(".state", has_text="from cache").wait_for()
        answered(page, 2)
        assert "from cache" in page.locator("#legend").inner_text()
