"""The official client against a real socket."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from support.fake_backend import FakeBackend, Script

HI = [{"role": "user", "content": "hi"}]


def test_plain_streamed_and_listed(connect):
    client = connect(FakeBackend(cached_tokens=4))
    answer = client.chat.completions.create(model="fake/model", messages=HI, max_tokens=20, seed=1)
    assert answer.choices[0].message.content == "Hello, world"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens_details.cached_tokens == 4

    stream = client.chat.completions.create(
        model="fake/model", messages=HI, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "Hello, world"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.total_tokens == answer.usage.total_tokens

    assert client.completions.create(model="fake/model", prompt="x").choices[0].text == "Hello, world"
    pieces = client.completions.create(model="fake/model", prompt="x", stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == "Hello, world"

    assert [model.id for model in client.models.list()] == ["fake/model"]
    assert client.models.retrieve("fake/model").created == 1_700_000_000


def test_the_client_s_own_stream_helper_understands_the_chunks(connect):
    client = connect(FakeBackend())
    with client.chat.completions.stream(model="fake/model", messages=HI) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "content.done" in kinds
    assert final.choices[0].message.content == "Hello, world"


def test_an_answer_can_be_sent_back(connect):
    """All the fields that the client's own object carries, unset ones included."""
    backend = FakeBackend()
    client = connect(backend)
    answer = client.chat.completions.create(model="fake/model", messages=HI).choices[0].message
    client.chat.completions.create(model="fake/model", messages=[*HI, answer, *HI])
    client.chat.completions.create(model="fake/model", messages=[*HI, answer.model_dump(), *HI])
    assert backend.prompt(1) == backend.prompt(2) == "user: hi\nassistant: Hello, world\nuser: hi\n"


def test_two_choices(connect):
    client = connect(FakeBackend(lambda _, params: Script([str(params.seed).encode()])))
    answer = client.chat.completions.create(model="fake/model", messages=HI, n=2, seed=3)
    plain = [choice.message.content for choice in answer.choices]
    streamed = ["", ""]
    for chunk in client.chat.completions.create(model="fake/model", messages=HI, n=2, seed=3, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == plain
    assert len(set(plain)) == 2


def test_errors_become_the_client_s_exceptions(connect):
    client = connect(FakeBackend(context_length=100, capacity=0), max_body_bytes=10_000)
    chat = client.chat.completions.create
    with pytest.raises(openai.RateLimitError) as full:
        chat(model="fake/model", messages=HI)
    assert full.value.code == "busy"
    with pytest.raises(openai.BadRequestError) as long:
        chat(model="fake/model", messages=[{"role": "user", "content": "x" * 200}])
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as unsupported:
        chat(model="fake/model", messages=HI, verbosity="low")
    assert unsupported.value.param == "verbosity"
    with pytest.raises(openai.NotFoundError) as missing:
        chat(model="gpt-4o", messages=HI)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="other").models.list()
    with pytest.raises(openai.APIStatusError) as large:
        chat(model="fake/model", messages=[{"role": "user", "content": "x" * 30_000}])
    assert large.value.status_code == 413


@pytest.mark.parametrize("reason", ["error", "cancelled"])
def test_a_failure_within_a_stream_is_raised_by_the_client(connect, reason):
    client = connect(FakeBackend(Script(reason=reason)))
    stream = client.chat.completions.create(model="fake/model", messages=HI, stream=True)
    got = []
    with pytest.raises(openai.APIError) as failure:
        got.extend(chunk.choices[0].delta.content or "" for chunk in stream)
    assert "".join(got) == "Hello, world"
    assert failure.value.code in ("internal_error", "request_cancelled")


def test_tokens_are_sent_when_they_are_sampled(connect):
    backend = FakeBackend(Script([b"a", b"b"], delay=0.3))
    client = connect(backend)
    ended_at = {}
    for chunk in client.chat.completions.create(model="fake/model", messages=HI, stream=True):
        ended_at[chunk.choices[0].delta.content] = backend.streams[0].ended
    assert (ended_at["a"], ended_at[None]) == (False, True)


def test_parallel_streams_do_not_mix(connect):
    backend = FakeBackend(lambda prompt, _: Script([prompt[6:8].encode()] * 20, delay=0.002))
    client = connect(backend)

    def ask(number: int) -> str:
        messages = [{"role": "user", "content": f"{number:02}"}]
        stream = client.chat.completions.create(model="fake/model", messages=messages, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(32)))
    assert answers == [f"{number:02}" * 20 for number in range(32)]
