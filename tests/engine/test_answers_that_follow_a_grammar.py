"""Answers that follow a grammar: always valid, never ended early, and the same in any company."""

from __future__ import annotations

import json

import jsonschema
import numpy as np
import pytest

from freehold.core.errors import RequestError, TokenizerError
from freehold.core.events import FinishEvent, TokenEvent
from freehold.core.sampling import SamplingParams
from freehold.engine.sampler import Sampler
from freehold.model.answer_grammar import json_schema_grammar
from support.engine_runs import run
from support.random_schemas import random_schema
from support.tiny_engine import VOCAB, random_tokens, tiny_engine, tiny_model

EOS = frozenset({260, 261})


class Bytes:
    """The 256 bytes, a special token, two that end an answer; the rest is padding."""

    eos_ids, special_ids = EOS, frozenset({259, *EOS})

    def token_bytes(self, token_id: int) -> bytes:
        """The byte, or a name."""
        if token_id < 256:
            return bytes([token_id])
        if token_id in self.special_ids:
            return f"<special {token_id}>".encode()
        raise TokenizerError(f"no token {token_id}")


@pytest.fixture(scope="module", params=["llama", "m3"])
def model(request):
    return tiny_model(request.param)


def byte_engine(model, **options):
    return tiny_engine(model, tokenizer=Bytes(), **options)


def answer(engine, params, prompt=(1, 2, 3)):
    """(token ids, text, last event) of one request."""
    engine.submit(list(prompt), params)
    tokens, text = [], ""
    while True:
        for event in engine.step():
            if isinstance(event, TokenEvent):
                tokens.append(event.token_id)
            if isinstance(event, (TokenEvent, FinishEvent)):
                text += event.text
            if isinstance(event, FinishEvent):
                return tokens, text, event


def params(grammar, **fields) -> SamplingParams:
    return SamplingParams(**{"grammar": grammar, "max_tokens": 400, "temperature": 1.0, "seed": 1, **fields})


@pytest.mark.parametrize("count", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_answers_of_a_model_without_sense_fit_random_schemas(count):
    engine = byte_engine(tiny_model("llama"), max_running=20, max_waiting=200)
    schemas = [random_schema(seed) for seed in range(count)]
    ids = {}
    for number, schema in enumerate(schemas):
        # White space is legal nearly everywhere; without a bias a senseless model writes little else.
        bias = {ord(c): -20.0 for c in " \n\r\t"}
        wanted = params(json_schema_grammar(schema), seed=number, max_tokens=500, logit_bias=bias)
        ids[engine.submit([number + 1, 7], wanted)] = schema
    texts, reasons = dict.fromkeys(ids, ""), {}
    while engine.busy:
        for event in engine.step():
            if isinstance(event, (TokenEvent, FinishEvent)):
                texts[event.request_id] += event.text
            if isinstance(event, FinishEvent):
                reasons[event.request_id] = event.reason
    assert sorted(set(reasons.values())) in (["stop"], ["length", "stop"])
    finished = [rid for rid, reason in reasons.items() if reason == "stop"]
    assert len(finished) >= 0.9 * count
    for rid in finished:
        jsonschema.validate(json.loads(texts[rid]), ids[rid])


def test_an_answer_stops_when_nothing_more_can_follow(model):
    tokens, text, last = answer(byte_engine(model), params('start: "yes" | "no"', max_tokens=50))
    assert text in ("yes", "no")
    assert len(tokens) == len(text)
    assert (last.reason, last.usage.completion_tokens) == ("stop", len(text))


def test_no_end_token_is_possible_before_the_grammar_may_end(model):
    push = dict.fromkeys(EOS, 100.0)
    tokens, text, last = answer(byte_engine(model), params("start: /[ab]{3,}/", logit_bias=push))
    assert len(text) == 3
    assert tokens[-1] in EOS
    assert last.reason == "stop"


def test_each_end_token_ends_where_the_grammar_may_end(model):
    for eos in EOS:
        tokens, text, last = answer(byte_engine(model), params("start: /[ab]+/", logit_bias={eos: 100.0}))
        assert (tokens[1:], len(text), last.reason) == ([eos], 1, "stop")


def test_an_answer_that_is_cut_off_says_length(model):
    _, text, last = answer(byte_engine(model), params("start: /a{30}/", max_tokens=4))
    assert (text, last.reason) == ("aaaa", "length")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_answer_is_the_same_alone_and_in_company(model, temperature):
    schema = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 12}, "b": {"type": "integer"}}}
    grammars = [json_schema_grammar(schema), "start: /[a-z ]{5,40}/", 'start: ("x" | "yz"){20}', None]
    requests = [
        (random_tokens(5 + 30 * n, seed=n), SamplingParams(max_tokens=30, temperature=temperature, seed=n, grammar=g))
        for n, g in enumerate(grammars)
    ]
    requests = [([t % 256 for t in prompt], p) for prompt, p in requests]
    alone = [run(byte_engine(model), request)[0] for request in requests]
    assert run(byte_engine(model), *requests) == alone
    # Also when requests lose their room and compute again.
    assert run(byte_engine(model, cache_tokens=160), *requests) == alone


def test_biases_and_penalties_choose_only_among_what_is_allowed(model):
    liked = {ord("z"): 100.0, ord("b"): 50.0}
    _, text, _ = answer(byte_engine(model), params("start: /[abc]{4}/", logit_bias=liked, temperature=0.0))
    assert text == "bbbb"
    fields = {"logit_bias": liked, "temperature": 0.0, "repetition_penalty": 10.0, "frequency_penalty": 2.0}
    _, text, _ = answer(byte_engine(model), params("start: /[abc]{4}/", **fields))
    assert len(text) == 4
    assert set(text) <= set("abc")


@pytest.mark.parametrize("fields", [{}, {"top_k": 3}, {"top_p": 0.3}, {"min_p": 0.5}, {"temperature": 0.0}])
def test_the_sampler_draws_as_if_other_tokens_were_absent(fields):
    logits = np.random.default_rng(0).normal(size=50).astype(np.float32)
    allowed = np.array([3, 7, 20, 21, 49])
    among = Sampler(SamplingParams(seed=5, **fields))
    small = Sampler(SamplingParams(seed=5, **fields))
    for _ in range(100):
        assert among.sample(logits, [], 0, allowed) == allowed[small.sample(logits[allowed], [], 0)]


def test_a_special_token_comes_only_where_the_grammar_names_it(model):
    _, text, last = answer(byte_engine(model), params('start: "a" <[259]> "b"', skip_special_tokens=False))
    assert (text, last.reason) == ("a<special 259>b", "stop")
    _, text, _ = answer(byte_engine(model), params('start: "a" <[259]> "b"'))
    assert text == "ab"
    tokens, _, _ = answer(byte_engine(model), params("start: /(?s:.{20})/", logit_bias={259: 100.0}))
    assert 259 not in tokens


def test_padding_of_the_vocabulary_is_never_allowed(model):
    tokens, _, _ = answer(byte_engine(model), params("start: /(?s:.{10})/", logit_bias={VOCAB - 1: 100.0, 300: 90.0}))
    assert all(token < 256 or token in EOS for token in tokens)


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ("start: foo", 'unknown name: "foo"'),
        ('start: "a', "grammar"),
        ('start: "a" <[9999]>', "9999"),
        ('start: %json {"not": {}}', "not"),
        ('start: %json {"not": {}, "x-guidance": {"lenient": true}}', "not"),
    ],
)
def test_a_grammar_that_is_none_is_refused_when_it_is_checked(model, grammar, message):
    with pytest.raises(RequestError, match=message) as refused:
        byte_engine(model).check([1], SamplingParams(grammar=grammar))
    assert refused.value.field == "grammar"


def test_fields_that_contradict_a_grammar_are_refused():
    with pytest.raises(RequestError, match="ignore_eos"):
        SamplingParams(grammar='start: "a"', ignore_eos=True)
    with pytest.raises(RequestError, match="grammar is '  '"):
        SamplingParams(grammar="  ")
    with pytest.raises(RequestError, match="grammar is 5"):
        SamplingParams(grammar=5)  # type: ignore[arg-type]


def test_a_stop_text_still_ends_an_answer(model):
    _, text, last = answer(byte_engine(model), params('start: "abcdef"', stop=("cd",)))
    assert (text, last.reason) == ("ab", "stop")


def test_a_grammar_that_becomes_too_large_is_the_request_s_own_fault(model):
    members = ", ".join(f'"p{i}": {{"type": "null"}}' for i in range(6500))
    _, _, last = answer(
        byte_engine(model), params(f'start: "a" b\nb: %json {{"properties": {{{members}}}, "type": "object"}}')
    )
    assert (last.reason, last.refusal) == ("error", last.error)
    assert "cannot be followed any further" in last.refusal
