"""What people and other tools read: a page without scripts, a text, SPDX 3.0.1, the head of a model card."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from spdx_python_model import v3_0_1 as spdx

from freehold.governance.disclosure import Disclosure, load_disclosure
from freehold.governance.disclosure.card import as_card
from freehold.governance.disclosure.catalogue import catalogue
from freehold.governance.disclosure.cyclonedx import document_of
from freehold.governance.disclosure.facts import disclosure_of
from freehold.governance.disclosure.loading import shipped_names
from freehold.governance.disclosure.page import as_page
from freehold.governance.disclosure.presentation import sections_of
from freehold.governance.disclosure.spdx import as_spdx
from freehold.governance.disclosure.text import WIDTH, as_text
from freehold.governance.disclosure.weights import with_weights
from support.disclosures import KEY, NOW, WEIGHTS, facts_file, stated
from support.page_browser import open_browser, open_page
from support.repository import ROOT

HOSTILE = '<script>alert(1)</script>" onload="x'


class Page(HTMLParser):
    """The tags of a page with their attributes, and its visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(params=shipped_names())
def shipped(request: pytest.FixtureRequest) -> Disclosure:
    return load_disclosure(request.param)


def test_a_page_needs_nothing_and_runs_nothing(shipped: Disclosure) -> None:
    page = Page(as_page(shipped))
    assert page.open == []
    assert {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "form", "object", "svg"} == set()
    for _, attributes in page.tags:
        assert not any(name.startswith("on") or name in ("src", "srcset", "style") for name in attributes)
    links = [a["href"] for tag, a in page.tags if tag == "a"]
    assert all(re.match(r"https?://|#", link or "") for link in links)
    assert "url(" not in as_page(shipped)
    anchors = {a["id"] for _, a in page.tags if "id" in a}
    assert {link[1:] for link in links if link and link[0] == "#"} <= anchors


def test_tables_are_told_to_those_who_do_not_see_them(shipped: Disclosure) -> None:
    page = Page(as_page(shipped))
    assert dict(page.tags)["html"]["lang"] == "en"
    tags = [tag for tag, _ in page.tags]
    assert tags.count("table") == tags.count("caption") > 8
    assert all(a.get("scope") for tag, a in page.tags if tag == "th")


def test_every_statement_is_on_the_page_and_in_the_text(shipped: Disclosure) -> None:
    page, text = Page(as_page(shipped)).text, " ".join(as_text(shipped).split())
    rows = [row for section in sections_of(shipped) for row in section.rows]
    rows += [row for section in sections_of(shipped) for country in section.jurisdictions for row in country.rows]
    assert len(rows) == len(shipped.facts)
    for row in rows:
        for line in row.lines:
            for part in (line.note, line.read, *(value for _, value in line.parts)):
                assert " ".join(part.split()) in page, row.key
                assert " ".join(part.split()) in text, row.key


def test_hostile_texts_stay_texts() -> None:
    entry = facts_file(provider__name=stated(HOSTILE, note=HOSTILE)) | {"title": HOSTILE}
    entry["sources"]["site"]["title"] = HOSTILE
    page = Page(as_page(disclosure_of(entry, "f"), HOSTILE))
    assert HOSTILE in page.text
    assert "script" not in {tag for tag, _ in page.tags}
    assert not any("onload" in attributes for _, attributes in page.tags)


def test_a_jurisdiction_that_is_named_has_a_table_or_says_that_nothing_was_read() -> None:
    (laws,) = (s for s in sections_of(load_disclosure("minimax-m3/api")) if s.key == "law")
    named = {j.code: (len(j.rows) > 0, j.named_by) for j in laws.jurisdictions}
    assert named["KY"] == (False, ("parent's country (the provider of the path)",))
    assert named["GB"] == (True, ())
    assert [word for _, by in (named["CN"], named["SG"], named["US"]) for word in by] == [
        "headquarters (the provider of the path)",
        "computed in (what happens to prompts and answers)",
        "its country (the provider of the path)",
        "kept in (what happens to prompts and answers)",
    ]


def test_lines_of_the_text_are_short(shipped: Disclosure) -> None:
    long = [line for line in as_text(shipped).splitlines() if len(line) > WIDTH and "http" not in line]
    assert long == []


def test_spdx_is_what_its_library_reads(shipped: Disclosure) -> None:
    measured = with_weights(shipped, WEIGHTS, NOW.date())
    objects = spdx.SHACLObjectSet()
    spdx.JSONLDDeserializer().read(io.BytesIO(as_spdx(measured, NOW).encode()), objects)
    (package,) = objects.foreach_type("ai_AIPackage")
    assert package.name == shipped.model
    annotations = [json.loads(item.statement) for item in objects.foreach_type("Annotation")]
    assert {item["field"] for item in annotations} == {f"freehold:{key}" for key in measured.facts}
    files = {item.name: item.verifiedUsing[0].hashValue for item in objects.foreach_type("software_File")}
    assert files == {file.name: file.sha256 for file in WEIGHTS.files}
    kinds = {str(item.relationshipType).rpartition("/")[2] for item in objects.foreach_type("Relationship")}
    assert kinds == {"hasDeclaredLicense", "contains"}


def test_the_model_card_is_yaml_that_marks_what_is_verified() -> None:
    entry = facts_file(
        licence__name=stated("Apache-2.0"),
        benchmark__a=stated({"benchmark": "A", "result": "59.0"}, "verified-here", "run"),
        benchmark__b=stated({"benchmark": "B: #1", "result": "7"}),
    )
    entry["sources"]["run"] = {"title": "A run of the benchmark", "publisher": "Example"}
    card = as_card(disclosure_of(entry, "f"))
    assert card.startswith("---\n")
    assert card.endswith("\n---\n")
    head = yaml.safe_load(card[4:-4])
    assert head["license"] == "apache-2.0"
    results = head["model-index"][0]["results"]
    assert [(r["dataset"]["name"], r["metrics"][0]["value"], r["metrics"][0]["verified"]) for r in results] == [
        ("A", 59.0, True),
        ("B: #1", 7.0, False),
    ]
    assert head["freehold_disclosure"]["facts"]["provider.country"]["statements"][0]["value"] == "DE"


def test_the_model_card_of_an_other_licence() -> None:
    head = yaml.safe_load(as_card(load_disclosure("minimax-m3/api"))[4:-4])
    assert (head["license"], head["license_name"]) == ("other", "minimax-community-license")
    assert head["license_link"].startswith("https://huggingface.co/MiniMaxAI/")


DISPUTED = {"status": "conflicting", "statements": [stated("MIT", "third-party", "press"), stated("Proprietary")]}
NOT_FOUND = stated({"not_found_in": "x", "on": "2026-11-01"}, "third-party", "press")


@pytest.mark.parametrize("licence", [DISPUTED, NOT_FOUND, stated("unknown", "third-party", "press")])
def test_exports_name_no_licence_that_is_in_dispute_or_was_not_found(licence: dict[str, Any]) -> None:
    disclosure = disclosure_of(facts_file(licence__name=licence, model__publisher=licence), "f")
    head = yaml.safe_load(as_card(disclosure)[4:-4])
    assert set(head) == {"freehold_disclosure"}
    exported = json.loads(as_spdx(disclosure, NOW))["@graph"]
    kinds = {item["type"] for item in exported}
    assert {kind for kind in kinds if "icens" in kind} == set()
    assert not any(item.get("suppliedBy") for item in exported)
    document = document_of(disclosure, KEY, NOW)
    assert document["metadata"]["component"]["licenses"][0]["license"]["name"] == "unknown"


def test_exports_of_conflicting_days_and_names() -> None:
    days = {"status": "conflicting", "statements": [stated("2026-01-01"), stated("2026-01-02", "third-party", "press")]}
    entry = facts_file(model__release_date=days, model__name=DISPUTED, model__architecture=NOT_FOUND)
    exported = json.loads(as_spdx(disclosure_of(entry, "f"), NOW))["@graph"]
    (package,) = (item for item in exported if item["type"] == "ai_AIPackage")
    assert package["name"] == "unknown"
    assert not any("elease" in name or "typeOfModel" in name for name in package)


def test_no_value_makes_a_line_or_a_status_of_the_text() -> None:
    entry = facts_file(data__logging=stated("nothing [verified-here]", note="[ Verified-Here ]"))
    disclosure = disclosure_of(entry | {"title": "T [verified-here]"}, "f")
    # Even one that was made without the checks of a file.
    wrong = replace(disclosure, title="T\nKept for: 0 days [verified-here]\x1b[2J")
    for text in (as_text(disclosure), as_text(wrong)):
        lines = [line for line in text.lower().splitlines() if re.search(r"\[\s*verified-here", line)]
        assert [line.split("]")[0].strip() for line in lines] == ["[verified-here"]
        assert "\x1b" not in text
        assert not any(line.startswith("Kept for: 0 days") for line in text.splitlines())


def test_tables_of_laws_say_what_was_not_looked_up(shipped: Disclosure) -> None:
    page, text = Page(as_page(shipped)).text, " ".join(as_text(shipped).split())
    (laws,) = (section for section in sections_of(shipped) if section.key == "law")
    for shown in (page, text):
        assert "member states' own laws" in shown
        assert "What was looked up is uneven" in shown
        for jurisdiction in laws.jurisdictions:
            assert jurisdiction.coverage in shown, jurisdiction.code
            assert "not" in jurisdiction.coverage or not jurisdiction.rows


def test_the_documented_table_of_fields_is_the_catalogue() -> None:
    page = (ROOT / "docs" / "reference" / "disclosure.md").read_text("utf-8")
    clusters = catalogue().clusters
    for field in catalogue().fields:
        row = f"| `{field.key}` | {field.label} | {field.kind} | {clusters[field.g7]} | {field.eu or ''} |"
        assert row.replace("|  |", "| |") in page


def test_a_browser_loads_nothing_but_the_page(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(as_page(load_disclosure("minimax-m3/api")), "utf-8")
    with open_browser() as browser:
        for width in (1280, 400):
            with open_page(browser, path.as_uri(), viewport={"width": width, "height": 900}) as page:
                # Wide tables scroll in themselves; the page does not.
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                assert page.get_by_role("table").count() > 8
                assert page.get_by_role("rowheader", name="Contracting entity", exact=True).count() == 1


def test_the_documented_file_of_facts_is_one() -> None:
    page = (ROOT / "docs" / "how-to" / "disclose.md").read_text("utf-8")
    (text,) = re.findall(r"```json\n(.*?)```", page, re.S)
    disclosure = disclosure_of(json.loads(text), "the page")
    assert (disclosure.data_path, disclosure.inference_locations, disclosure.retention_days) == ("hosted", ("DE",), 0)
