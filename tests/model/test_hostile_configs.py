"""Configurations with values that no model has: a named error, or a model; never a traceback, a hang, or a flood."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import nn

from freehold.core.errors import ConfigError, FreeholdError
from freehold.loading.block_config import find_blocks
from freehold.loading.checkpoint import TensorInfo, open_checkpoint
from freehold.loading.quantization_config import read_quantization
from freehold.loading.scaled_layout import find_scaled
from freehold.model.compute import ReferenceCompute
from freehold.model.index_branch import IndexSizes
from freehold.model.index_sidecar import open_index
from freehold.model.llama import Llama, LlamaConfig
from freehold.model.minimax_m3 import MiniMaxM3
from freehold.model.minimax_m3_config import MiniMaxM3Config
from freehold.model.minimax_m3_mmproj import Mmproj
from freehold.model.vision.config import VisionConfig
from freehold.plan.plan import PlanSettings, make_plan
from freehold.plan.subject import open_subject
from support.tiny_index import write_tiny_index
from support.tiny_llama import LLAMAS, write_tiny_llama
from support.tiny_m3 import TinyM3Spec, write_tiny_m3, write_tiny_m3_gguf
from support.tiny_m3_mmproj import vision_keys, vision_tensors, write_mmproj

VALUES = [
    "text", None, [], [None], [[]], {}, {"a": 1},
    -1, 0, 1.5, 3, True, 2**31 - 1, 2**31, 2**62, 10**400, 1e308, float("inf"), float("nan"),
]  # fmt: skip
SPEC = TinyM3Spec("hostile", (0, 1), (0, 1), num_experts=4, topk=2, block_tokens=32)
MORE = tuple(
    """
    rope_parameters rope_scaling partial_rotary_factor layer_types mlp_layer_types dtype torch_dtype head_dim
    quantization_config text_config architectures n_shared_experts
    """.split()
)


def changed(values: dict[str, Any], more: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """The configuration with each of its keys, at any depth, and each of `more`, at the first two, changed to each of
    VALUES; and what was changed."""

    def places(inner: dict[str, Any], above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        for key in dict.fromkeys((*inner, *(more if len(above) < 2 else ()))):
            yield (*above, key)
            if isinstance(inner.get(key), dict):
                yield from places(inner[key], (*above, key))

    for place in places(values, ()):
        for value in VALUES:
            made = copy.deepcopy(values)
            inner = made
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = value
            yield f"{'.'.join(place)} is {value!r:.30}", made


def only_named_errors(read: Callable[[dict[str, Any]], object], values: dict[str, Any], *more: str) -> None:
    read(copy.deepcopy(values))
    refused = 0
    for what, made in changed(values, more):
        try:
            read(made)
        except FreeholdError:
            refused += 1
        except Exception as error:
            raise AssertionError(what) from error
    assert refused > 20


@pytest.fixture(scope="module")
def m3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    write_tiny_m3(SPEC, path := tmp_path_factory.mktemp("release") / "m3")
    return path


def config_of(directory: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return values


def plan_in(directory: Path) -> Callable[[dict[str, Any]], object]:
    directory.mkdir()

    def plan(values: dict[str, Any]) -> object:
        (directory / "config.json").write_text(json.dumps(values))
        return make_plan(open_subject(str(directory)), PlanSettings()).as_json()

    return plan


def empty(kind: type[Llama] | type[MiniMaxM3], directory: Path) -> Callable[[dict[str, Any]], nn.Module]:
    def build(values: dict[str, Any]) -> nn.Module:
        with open_checkpoint(directory) as checkpoint:
            checkpoint.config = values
            model = kind.empty(checkpoint, ReferenceCompute())
            model.sources(checkpoint)
        return model

    return build


def test_m3(m3: Path, tmp_path: Path) -> None:
    only_named_errors(plan_in(tmp_path / "plan"), config_of(m3), *MORE)
    only_named_errors(empty(MiniMaxM3, m3), config_of(m3), *MORE)
    only_named_errors(
        lambda values: VisionConfig.from_hf(values, "x"), config_of(m3), "rope_parameters", "image_token_id"
    )


def test_m3_with_more_heads_than_memory_holds(m3: Path, tmp_path: Path) -> None:
    values = config_of(m3)
    text = values["text_config"]
    text["num_attention_heads"] = text["num_key_value_heads"] = 2**30
    text["sparse_attention_config"]["sparse_num_index_heads"] = 2**30
    with pytest.raises(ConfigError, match="more memory than this machine can give"):
        plan_in(tmp_path / "plan")(values)


def test_m3_as_transformers_saves_it(tmp_path: Path) -> None:
    write_tiny_m3(SPEC, tmp_path / "m3", config_form="transformers")
    only_named_errors(plan_in(tmp_path / "plan"), config_of(tmp_path / "m3"), *MORE)
    only_named_errors(empty(MiniMaxM3, tmp_path / "m3"), config_of(tmp_path / "m3"), *MORE)


@pytest.mark.parametrize("name", ["plain", "linear", "llama3", "yarn_tuned", "yarn_mscale"])
def test_llama(name: str, tmp_path: Path) -> None:
    write_tiny_llama(LLAMAS[name], tmp_path / "llama")
    only_named_errors(plan_in(tmp_path / "plan"), config_of(tmp_path / "llama"), *MORE)
    only_named_errors(empty(Llama, tmp_path / "llama"), config_of(tmp_path / "llama"), *MORE)


LLAMA_GGUF: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.vocab_size": 320,
    "llama.embedding_length": 96,
    "llama.block_count": 2,
    "llama.feed_forward_length": 128,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.context_length": 512,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 1e4,
    "llama.rope.scaling.type": "linear",
    "llama.rope.scaling.factor": 2.0,
    "llama.expert_count": 0,
}


def test_gguf(tmp_path: Path) -> None:
    write_tiny_m3_gguf(SPEC, tmp_path / "m3.gguf")
    with open_checkpoint(tmp_path / "m3.gguf") as checkpoint:
        sizes = {key: value for key, value in checkpoint.config.items() if not key.startswith("tokenizer.")}
    sizes["minimax-m3.vocab_size"] = SPEC.vocab_size
    only_named_errors(empty(MiniMaxM3, tmp_path / "m3.gguf"), sizes, "tokenizer.ggml.tokens")
    only_named_errors(lambda values: LlamaConfig.from_gguf(values, {}, "x"), LLAMA_GGUF, "tokenizer.ggml.tokens")


def test_mmproj(m3: Path, tmp_path: Path) -> None:
    stored = load_file(m3 / "model.safetensors")
    weights = {name: tensor.numpy() for name, tensor in stored.items() if not name.startswith("language_model.")}
    vision = config_of(m3)["vision_config"]
    tensors = vision_tensors(weights, vision["hidden_size"] // vision["num_attention_heads"])
    with open_checkpoint(write_mmproj(tmp_path / "x.gguf", vision_keys(config_of(m3)), tensors)) as checkpoint:

        def read(values: dict[str, Any]) -> object:
            checkpoint.config = values
            return VisionConfig.from_hf({**Mmproj(checkpoint).config, "image_token_id": 1, "video_token_id": 2}, "x")

        only_named_errors(read, dict(checkpoint.config))


def test_index(tmp_path: Path) -> None:
    write_tiny_llama(LLAMAS["plain"], tmp_path / "llama")
    place = write_tiny_index(tmp_path / "index", tmp_path / "llama", IndexSizes(2, 32, 32, 4), 96, [1])

    def read(values: dict[str, Any]) -> object:
        (place / "config.json").write_text(json.dumps(values))
        return open_index(place)

    only_named_errors(read, config_of(place))


QUANTIZATIONS: tuple[dict[str, Any], ...] = (
    {"quant_method": "mxfp8", "weight_block_size": [1, 32], "ignored_layers": ["lm_head"]},
    {"quant_method": "fp8", "weight_block_size": [64, 32], "modules_to_not_convert": ["re:x"], "scale_fmt": "ue8m0"},
    {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": {"a": {"quant_algo": "MXFP8"}}},
    {"quant_method": "freehold", "version": 1, "default": "Q4_1", "tensors": {"Q8_0": ["a.weight"]}},
)


@pytest.mark.parametrize("values", QUANTIZATIONS, ids=lambda values: values["quant_method"])
def test_quantisations(values: dict[str, Any]) -> None:
    def read(values: dict[str, Any]) -> object:
        if "version" in values:
            return find_blocks(values, {"a.weight": TensorInfo((4, 34), "U8")}, "x")
        stored = {"a.weight": TensorInfo((64, 64), "F8_E4M3"), "a.weight_scale": TensorInfo((64, 2), "U8")}
        if values.get("quant_method") == "fp8":
            stored["a.weight_scale"] = TensorInfo((1, 2), "U8")
        return find_scaled(stored, read_quantization(values, "x"), "x")

    only_named_errors(read, values)


@pytest.mark.parametrize("lead", [-1, 3, 2**31])
def test_dense_layers_that_a_gguf_file_does_not_have(tmp_path: Path, lead: int) -> None:
    write_tiny_m3_gguf(SPEC, tmp_path / "m3.gguf")
    with open_checkpoint(tmp_path / "m3.gguf") as checkpoint:
        metadata = {**checkpoint.config, "minimax-m3.leading_dense_block_count": lead}
    with pytest.raises(ConfigError, match=f"'leading_dense_block_count' is {lead}; the model has 2 layers"):
        MiniMaxM3Config.from_gguf(metadata, "m3.gguf")
