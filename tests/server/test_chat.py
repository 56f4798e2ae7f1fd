from __future__ import annotations

import pytest

from freehold.server.app import create_app
from support.fake_backend import FakeBackend, Script


def test_an_answer_has_openai_s_form(ask):
    backend = FakeBackend(cached_tokens=3)
    response = ask(create_app(backend)).chat(temperature=0, stop=["X"], max_tokens=10, user="me")
    body = response.json()
    assert response.status_code == 200
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    assert body["model"] == "fake/model"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello, world", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"] == {
        "prompt_tokens": len("user: hi\n"),
        "completion_tokens": 3,
        "total_tokens": len("user: hi\n") + 3,
        "prompt_tokens_details": {"cached_tokens": 3},
    }


def test_the_backend_gets_messages_sampling_fields_and_template_arguments(ask):
    backend = FakeBackend()
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "tool_calls": None, "refusal": None},
        {"role": "user", "content": "d"},
    ]
    fields = {"temperature": 0.5, "top_k": 7, "min_p": 0.1, "seed": 4, "stop": "s", "stop_token_ids": [9]}
    more = {
        "logit_bias": {"65": -3},
        "repetition_penalty": 1.5,
        "ignore_eos": True,
        "max_completion_tokens": 2,
    }
    response = ask(create_app(backend)).chat(
        messages=messages, chat_template_kwargs={"thinking": "off"}, **fields, **more
    )
    assert response.status_code == 200
    assert backend.prompt(0) == "thinking=off;system: be brief\nuser: ab\nassistant: c\nuser: d\n"
    params = backend.streams[0].params
    assert (params.temperature, params.top_k, params.min_p, params.seed) == (0.5, 7, 0.1, 4)
    assert (params.stop, params.stop_token_ids, params.logit_bias) == (("s",), (9,), {65: -3.0})
    assert (params.repetition_penalty, params.ignore_eos, params.max_tokens) == (1.5, True, 2)


def test_templates_see_only_the_fields_that_were_given(ask):
    backend = FakeBackend()
    messages = [
        {"role": "user", "content": "a"},
        {"role": "user", "content": "b", "name": "Bo", "refusal": None},
    ]
    ask(create_app(backend)).chat(messages=messages)
    assert backend.messages == [
        {"role": "user", "content": "a"},
        {"role": "user", "content": "b", "name": "Bo"},
    ]


def test_the_token_limit_is_told_as_the_finish_reason(ask):
    body = ask(create_app(FakeBackend())).chat(max_tokens=2).json()
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["choices"][0]["message"]["content"] == "Hello, "


@pytest.mark.parametrize("stream", [False, True])
def test_several_choices_have_seeds_of_their_own_and_count_the_prompt_once(ask, chunks_of, stream):
    backend = FakeBackend(lambda _, params: Script([str(params.seed).encode()]))
    options = {"stream_options": {"include_usage": True}} if stream else {}
    response = ask(create_app(backend)).chat(n=3, seed=5, stream=stream, **options)
    seeds = [stream.params.seed for stream in backend.streams]
    assert seeds[0] == 5
    assert len(set(seeds)) == 3
    if stream:
        chunks = chunks_of(response)
        usage, texts = chunks[-1]["usage"], ["", "", ""]
        for choice in (choice for chunk in chunks for choice in chunk["choices"]):
            texts[choice["index"]] += choice["delta"].get("content", "")
    else:
        body = response.json()
        usage, texts = body["usage"], [choice["message"]["content"] for choice in body["choices"]]
    assert texts == [str(seed) for seed in seeds]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (len("user: hi\n"), 3)


def test_without_a_seed_no_choice_gets_one(ask):
    backend = FakeBackend()
    ask(create_app(backend)).chat(n=2)
    assert [stream.params.seed for stream in backend.streams] == [None, None]


def test_if_one_choice_does_not_fit_the_others_are_cancelled(ask):
    backend = FakeBackend(capacity=2)
    response = ask(create_app(backend)).chat(n=3)
    assert response.status_code == 429
    assert [stream.was_cut_short for stream in backend.streams] == [True, True]


def test_a_stream_begins_with_the_role_and_ends_with_the_reason(ask, chunks_of):
    chunks = chunks_of(ask(create_app(FakeBackend())).chat(stream=True))
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert deltas[1:] == [{"content": "Hello"}, {"content": ", "}, {"content": "world"}, {}]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 4 + ["stop"]
    assert all("usage" not in chunk for chunk in chunks)


def test_the_usage_chunk_comes_last_has_no_choices_and_only_when_asked_for(ask, chunks_of):
    app = create_app(FakeBackend(cached_tokens=2))
    *chunks, last = chunks_of(ask(app).chat(stream=True, stream_options={"include_usage": True}))
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
    assert last["usage"]["completion_tokens"] == 3


def test_characters_spread_over_tokens_arrive_whole(ask, chunks_of):
    text = "é😀漢"
    tokens = [bytes([byte]) for byte in text.encode()]
    chunks = chunks_of(ask(create_app(FakeBackend(Script(tokens)))).chat(stream=True))
    pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert [piece for piece in pieces if piece] == list(text)


def test_text_held_back_until_the_end_belongs_to_the_answer(ask, chunks_of):
    # The last character is cut off by the end: its replacement comes with the FinishEvent.
    app = create_app(FakeBackend(Script([b"a", b"\xe2\x82"])))
    assert ask(app).chat().json()["choices"][0]["message"]["content"] == "a\ufffd"
    chunks = chunks_of(ask(app).chat(stream=True))
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks] == ["", "a", "\ufffd", None]


@pytest.mark.parametrize("stream", [False, True])
def test_errors_before_the_first_token_have_a_status(ask, stream):
    app = create_app(FakeBackend(context_length=8, capacity=0))
    too_long = ask(app).chat(stream=stream)
    assert too_long.status_code == 400
    assert too_long.json()["error"]["code"] == "context_length_exceeded"
    full = ask(create_app(FakeBackend(capacity=0))).chat(stream=stream)
    assert full.status_code == 429
    assert int(full.headers["retry-after"]) >= 1
    assert full.json()["error"]["code"] == "busy"
    template = ask(create_app(FakeBackend())).chat(stream=stream, chat_template_kwargs={"explode": True})
    assert template.status_code == 400
    assert template.json()["error"]["param"] == "messages"


@pytest.mark.parametrize(
    ("script", "status"),
    [
        (Script(reason="error", error="SECRET"), 500),
        (Script(crash=RuntimeError("SECRET")), 500),
        (Script(reason="cancelled"), 503),
    ],
)
def test_a_failing_engine_gives_an_error_without_internals(ask, script, status):
    plain = ask(create_app(FakeBackend(script))).chat()
    assert plain.status_code == status
    assert "SECRET" not in plain.text
    assert plain.json()["error"]["type"] == "server_error"
    stream = ask(create_app(FakeBackend(script))).chat(stream=True)
    last = stream.text.strip().split("\n")[-1]
    assert last.startswith('data: {"error":{"message":')
    assert "SECRET" not in stream.text
    assert "[DONE]" not in stream.text
    if status == 500:
        assert plain.headers["x-request-id"] in plain.text
        assert stream.headers["x-request-id"] in last


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_breaks_off_by_the_request_s_own_fault_says_so(ask, stream):
    asker = ask(create_app(FakeBackend(Script(reason="error", error="SECRET", refusal="the grammar is too large"))))
    response = asker.chat(stream=stream)
    assert response.status_code == (200 if stream else 400)
    assert "the grammar is too large" in response.text
    assert '"type":"invalid_request_error"' in response.text
    assert "SECRET" not in response.text


def test_when_one_choice_fails_the_others_are_cancelled(ask):
    scripts = iter([Script(delay=5), Script(reason="error")])
    backend = FakeBackend(lambda *_: next(scripts))
    assert ask(create_app(backend)).chat(n=2).status_code == 500
    assert backend.streams[0].was_cut_short


def test_silence_is_filled_with_comments_by_the_clock(ask, chunks_of):
    # Prefill events come more often than the comments, and must not put them off.
    script = Script(prefill=0.5, prefill_steps=25)
    response = ask(create_app(FakeBackend(script), keepalive_seconds=0.1)).chat(stream=True)
    comments = [line for line in response.text.split("\n") if line.startswith(":")]
    assert 3 <= len(comments) <= 5
    assert "prompt tokens read" in comments[-1]
    assert len(chunks_of(response)) == 5


def test_a_stream_that_is_not_silent_has_no_comments(ask):
    script = Script([b"x"] * 20, delay=0.02)
    response = ask(create_app(FakeBackend(script), keepalive_seconds=0.2)).chat(stream=True)
    assert not [line for line in response.text.split("\n") if line.startswith(":")]
