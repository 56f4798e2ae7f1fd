"""Every field of the frozen values is checked for its type: none can be added and forgotten."""

from __future__ import annotations

from dataclasses import fields

from freehold.core import config, sampling


def test_every_engine_option_has_a_kind():
    assert set(config._KINDS) == {f.name for f in fields(config.EngineConfig)}
    assert {f.name for f in fields(config.EngineConfig) if f.default is None} == config._OPTIONAL


def test_every_sampling_field_has_a_kind():
    collections = {"stop", "stop_token_ids", "logit_bias"}  # checked element by element
    assert set(sampling._KINDS) | collections == {f.name for f in fields(sampling.SamplingParams)}
