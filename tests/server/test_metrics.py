"""Metrics and log lines say what happened, and never what was said."""

from __future__ import annotations

import io
import json
import logging
import re
from dataclasses import replace

import httpx
import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from freehold.core.events import FinishEvent, Miss, PrefillEvent, TokenEvent, Usage
from freehold.server.app import create_app
from freehold.server.operation.keys import Keys
from freehold.server.operation.logs import JsonFormatter, TextFormatter, log_config
from freehold.server.operation.metrics import Metrics
from freehold.server.operation.observation import Observation
from freehold.server.operation.operation import Operation
from support.fake_backend import FakeBackend, Script
from support.repository import ROOT


def samples(text):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def served(ask):
    def make(script=None, **options):
        backend = FakeBackend(script or Script(), **options)
        operation = Operation.of(backend)
        return ask(create_app(backend, operation=operation)), lambda: samples(operation.metrics.text().decode())

    return make


def test_an_answer_is_counted(served):
    asker, read = served(Script([b"a", b"b", b"c"]), cached_tokens=2)
    usage = asker.complete(prompt="x" * 10).json()["usage"]
    asker.get("/v1/models/unknown")
    asker.get("/secret/path")
    counted = read()
    assert counted["freehold_prompt_tokens_total",] == usage["prompt_tokens"] == 10
    assert counted["freehold_cached_prompt_tokens_total",] == 2
    assert counted["freehold_generated_tokens_total",] == 3
    assert counted["freehold_time_to_first_token_seconds_count",] == 1
    assert counted["freehold_time_between_tokens_seconds_count",] == 2
    assert counted["freehold_request_seconds_count",] == 1
    assert counted["freehold_queue_seconds_count",] == counted["freehold_prefill_seconds_count",] == 1
    assert counted["freehold_http_requests_in_progress",] == 0
    routes = {dict(key[1:])["route"]: dict(key[1:]) for key in counted if key[0] == "freehold_http_requests_total"}
    assert routes["/v1/completions"]["status"] == "200"
    # Patterns, not paths: clients choose paths, and each would become a series of its own.
    assert routes["/v1/models/{model_id:path}"]["status"] == "404"
    assert "/secret/path" not in routes
    assert routes["(none)"]["status"] == "404"


def test_failures_are_counted_as_such(served):
    asker, read = served(Script(reason="error", error="x"))
    assert asker.complete().status_code == 500
    assert read()["freehold_generations_total", ("reason", "error")] == 1


def test_refusals_are_counted_by_key_and_reason(ask):
    backend = FakeBackend()
    operation = Operation.of(backend, keys=Keys(api_key="key"))
    ask(create_app(backend, operation=operation)).get("/v1/models")
    counted = samples(operation.metrics.text().decode())
    assert counted["freehold_refusals_total", ("key", ""), ("reason", "key")] == 1


def test_the_backend_is_read_when_prometheus_asks():
    stats = {"requests_running": 3, "cache_blocks_free": 5, "prompt_tokens_cached_disk": 7, "new": 9, "name": "text"}
    metrics = Metrics(lambda: stats, lambda: 4)
    stats["requests_running"] = 2
    counted = samples(metrics.text().decode())
    assert counted["freehold_requests_running",] == 2
    assert counted["freehold_cache_blocks", ("state", "free")] == 5
    assert counted["freehold_prompt_tokens_found_total", ("tier", "disk")] == 7
    assert counted["freehold_engine_stat", ("stat", "new")] == 9
    assert counted["freehold_open_connections",] == 4
    assert counted["freehold_memory_resident_bytes",] > 10**6


def test_two_servers_share_nothing():
    first, second = Metrics(), Metrics()
    first.observe_request("/r", "GET", 200)
    assert b'route="/r"' in first.text()
    assert b'route="/r"' not in second.text()
    assert not [name for name in REGISTRY._names_to_collectors if name.startswith("freehold")]


def test_metrics_have_prometheus_form(ask):
    response = ask(create_app(FakeBackend())).get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert samples(response.text)


def test_the_manual_lists_every_metric():
    page = (ROOT / "docs" / "how-to" / "operate.md").read_text("utf-8")
    listed = set(re.findall(r"`(freehold_[a-z_]+)`", page))
    from freehold.server.operation.metrics import _STATS

    metrics = Metrics(lambda: dict.fromkeys(_STATS, 1) | {"other": 1})
    families = {family.name for family in metrics.registry.collect()}
    types = {family.name: family.type for family in metrics.registry.collect()}
    assert listed == {name + "_total" * (types[name] == "counter") for name in families}


class Clock:
    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


def test_a_stream_that_is_given_up_costs_what_was_done():
    clock = Clock()
    seen = Observation(Metrics(), clock)
    seen.observe_submit("read", 100)
    seen.observe_submit("unread", 50)
    seen.observe_event("read", PrefillEvent("read", 30, 100))
    assert (seen.prompt_tokens, seen.completion_tokens, seen.first_token_seconds) == (30, 0, None)
    clock.seconds = 2.5
    seen.observe_event("read", TokenEvent("read", 1, "x"))
    seen.finish()
    assert (seen.prompt_tokens, seen.completion_tokens, seen.first_token_seconds) == (100, 1, 2.5)
    assert seen.finish_reason == "aborted"


def test_reasons_stand_side_by_side():
    seen = Observation(Metrics())
    for name, reason in (("a", "stop"), ("b", "length"), ("c", "stop")):
        seen.observe_submit(name, 4, prompt="same")
        seen.observe_event(name, FinishEvent(name, reason, Usage(4, 2, 3)))
    assert (seen.prompt_tokens, seen.cached_tokens, seen.completion_tokens) == (4, 2, 9)
    assert seen.finish_reason == "length,stop"


def test_a_client_that_leaves_is_charged_and_logged(running, until):
    backend = FakeBackend(Script([b"x"] * 1000, delay=0.01))
    operation = Operation.of(backend, keys=Keys(api_key="key"))
    body = {"model": "fake/model", "prompt": "abcd", "stream": True, "max_tokens": 1000}
    headers = {"x-api-key": "key"}
    with (
        running(create_app(backend, operation=operation)) as url,
        httpx.stream("POST", f"{url}/v1/completions", json=body, headers=headers) as response,
    ):
        next(response.iter_lines())
        response.close()
        who = operation.keys.find("key")
        until(lambda: operation.limits.spent(who) > 4)
    assert operation.limits.spent(who) < 900


SECRET = Script([b"SE", b"CRET"])


@pytest.fixture
def lines(ask):
    """What a server writes, as text, while requests are made."""

    def run(formatter, *requests, script=SECRET, log_miss_text=False, api_key="key", **options):
        handler = logging.StreamHandler(io.StringIO())
        handler.setFormatter(formatter)
        logger = logging.getLogger("freehold")
        level, propagate = logger.level, logging.getLogger("freehold.access").propagate
        logger.addHandler(handler)
        logging.getLogger("freehold.access").propagate = True
        logging.getLogger("freehold.access").setLevel(logging.INFO)
        try:
            backend = FakeBackend(script)
            operation = replace(Operation.of(backend, keys=Keys(api_key=api_key)), log_miss_text=log_miss_text)
            asker = ask(create_app(backend, operation=operation, **options))
            for request in requests:
                request(asker)
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logging.getLogger("freehold.access").propagate = propagate
        return handler.stream.getvalue()

    return run


def test_a_line_of_json_for_each_request(lines):
    text = lines(
        JsonFormatter(),
        lambda asker: asker.complete(prompt="PRIVATE", stream=True),
        lambda asker: asker.get("/v1/models?PRIVATE", headers={"x-api-key": "no"}),
        api_key=None,
    )
    first, second = (json.loads(line) for line in text.splitlines())
    assert {"time", "level", "logger", "request_id", "seconds"} <= set(first)
    assert (first["route"], first["status"], first["finish_reason"]) == ("/v1/completions", 200, "stop")
    assert (first["prompt_tokens"], first["completion_tokens"], first["cached_tokens"]) == (7, 2, 0)
    assert 0 < first["first_token_seconds"] <= first["seconds"]
    assert (second["route"], second["finish_reason"]) == ("/v1/models", None)
    assert "PRIVATE" not in text
    assert "CRET" not in text


MISSED = Script([b"x"], miss=Miss(70, 4, (1,), (2,), expected_text="PRI VATE\nforged: line", got_text="NEW"))


def test_the_line_says_where_a_prompt_left_what_is_kept(lines):
    text = lines(JsonFormatter(), lambda asker: asker.complete(prompt="abc"), script=MISSED, api_key=None)
    line = json.loads(text)
    assert (line["miss_token"], line["miss_block"]) == (70, 4)
    assert "VATE" not in text
    text = lines(JsonFormatter(), lambda asker: asker.complete(prompt="abc"), api_key=None)
    assert "miss_token" not in json.loads(text)


def test_the_words_of_a_miss_are_in_the_line_if_asked_for(lines):
    def complete(asker):
        asker.complete(prompt="abc")

    line = json.loads(lines(JsonFormatter(), complete, script=MISSED, log_miss_text=True, api_key=None))
    assert (line["miss_expected"], line["miss_got"]) == ("PRI VATE\nforged: line", "NEW")
    text = lines(TextFormatter(), complete, script=MISSED, log_miss_text=True, api_key=None)
    assert text.count("\n") == 1  # what a prompt says cannot look like another line
    assert 'miss_expected="PRI VATE\\nforged: line" miss_got=NEW' in text


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_no_terminal_obeys_the_words_of_a_miss(lines, formatter):
    said = "a\x1b[2J\x9b2J\x7f\x85\u2028\u202e\U0001f600"
    script = Script([b"x"], miss=Miss(70, 4, (1,), (2,), expected_text=said, got_text="NEW"))
    text = lines(formatter, lambda asker: asker.complete(prompt="abc"), script=script, log_miss_text=True, api_key=None)
    assert text.isascii()
    assert text.removesuffix("\n").isprintable()
    if isinstance(formatter, JsonFormatter):
        assert json.loads(text)["miss_expected"] == said


def test_the_line_names_the_key_and_not_its_value(lines):
    text = lines(
        TextFormatter(), lambda asker: asker.get("/v1/models", headers={"x-api-key": "s3cret"}), api_key="s3cret"
    )
    assert "key=api-key" in text
    assert "s3cret" not in text


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_tracebacks_are_written_without_their_words(formatter):
    try:
        raise KeyError("PRIVATE")
    except KeyError as error:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "failed", (), (KeyError, error, error.__traceback__))
    text = formatter.format(record)
    assert "KeyError" in text
    assert "PRIVATE" not in text


@pytest.mark.parametrize("access_log", [True, False])
def test_the_access_log_is_an_option(access_log):
    loggers = log_config("json", "warning", access_log=access_log)["loggers"]
    assert loggers["freehold.access"].get("handlers") == ([] if access_log else ["nowhere"])
    assert loggers["freehold"]["level"] == "WARNING"
