"""Parameters, bytes and tensors: of the published M3, of small models, and of whatever a configuration may say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MiniMaxM3SparseForConditionalGeneration, MiniMaxM3VLConfig

from freehold.core.errors import ConfigError, ModelNotFoundError
from freehold.loading.checkpoint import open_checkpoint
from freehold.loading.pull import pull
from freehold.model.llama import LlamaConfig
from freehold.plan.subject import Subject, open_subject
from support import published_m3
from support.tiny_llama import LLAMAS, write_tiny_llama
from support.tiny_m3 import SHAPES, quiet_transformers, write_tiny_m3, write_tiny_m3_gguf


def subject_of(folder: Path, config: dict[str, Any]) -> Subject:
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return open_subject(str(path))


def test_published_m3_to_the_last_byte(tmp_path: Path) -> None:
    m3 = subject_of(tmp_path, published_m3.full_config())
    assert sum(m3.parameters.values()) == published_m3.PARAMETERS
    assert sum(m3.nbytes.values()) == published_m3.PAYLOAD_BYTES
    assert len(m3.tensors) == published_m3.NUM_TENSORS
    assert m3.parameters == published_m3.BY_PART
    active = sum(count for part, count in m3.active.items() if part not in ("norms", "embeddings"))
    assert active == published_m3.ACTIVE_WITHOUT_NORMS


def test_published_m3_against_transformers(tmp_path: Path) -> None:
    with quiet_transformers(), torch.device("meta"):
        model = MiniMaxM3SparseForConditionalGeneration(MiniMaxM3VLConfig(**published_m3.full_config()))  # type: ignore[no-untyped-call]
    stored = sum(tensor.numel() for tensor in model.state_dict().values())
    assert sum(subject_of(tmp_path, published_m3.full_config()).parameters.values()) == stored


def test_text_configuration_alone_is_the_same_model_without_vision(tmp_path: Path) -> None:
    text, full = (subject_of(tmp_path, c) for c in (published_m3.text_config(), published_m3.full_config()))
    assert {**text.parameters, "vision": full.parameters["vision"]} == full.parameters


def test_mxfp8_has_the_published_tensors_and_bytes(tmp_path: Path) -> None:
    m3 = subject_of(tmp_path, published_m3.mxfp8_config())
    assert sum(m3.parameters.values()) == published_m3.PARAMETERS
    assert len(m3.tensors) == published_m3.MXFP8_TENSORS
    assert round(sum(m3.nbytes.values()) / 2**30, 2) == published_m3.MXFP8_GIB


def test_other_quantisations_need_their_files(tmp_path: Path) -> None:
    config = {**published_m3.full_config(), "quantization_config": {"quant_method": "modelopt"}}
    with pytest.raises(ConfigError, match="'modelopt', whose sizes do not follow"):
        subject_of(tmp_path, config)


def test_a_quantisation_counts_wherever_it_stands(tmp_path: Path) -> None:
    config = published_m3.mxfp8_config()
    quantization = config.pop("quantization_config")
    config["text_config"] = {**config["text_config"], "quantization_config": quantization}
    nested = subject_of(tmp_path, config)
    assert round(sum(nested.nbytes.values()) / 2**30, 2) == published_m3.MXFP8_GIB
    del config["text_config"]["quantization_config"]
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(quantization))
    assert subject_of(tmp_path, config).nbytes == nested.nbytes


@pytest.mark.parametrize("key", ["modules_to_not_convert", "ignore"])
def test_ignored_modules_are_found_as_loading_finds_them(tmp_path: Path, key: str) -> None:
    config = published_m3.mxfp8_config()
    quantization = dict(config["quantization_config"])
    ignored = quantization.pop("ignored_layers")
    config["quantization_config"] = {**quantization, key: [f"re:(.*\\.)?{part}(\\.|$)" for part in ignored]}
    assert round(sum(subject_of(tmp_path, config).nbytes.values()) / 2**30, 2) == published_m3.MXFP8_GIB


def test_a_llamas_quantisation_counts_too(tmp_path: Path) -> None:
    values = llama_values(hidden_size=64, intermediate_size=96)
    plain = subject_of(tmp_path, values)
    mxfp8 = {"quant_method": "mxfp8", "ignored_layers": ["lm_head", "embed_tokens"]}
    packed = subject_of(tmp_path, {**values, "quantization_config": mxfp8})
    assert packed.parameters == plain.parameters
    assert packed.nbytes["attention"] * 2 == pytest.approx(plain.nbytes["attention"] * 33 / 32)
    with pytest.raises(ConfigError, match="'awq', whose sizes do not follow"):
        subject_of(tmp_path, {**values, "quantization_config": {"quant_method": "awq"}})


@pytest.mark.parametrize("name", ["release_selection", "mixed_layers"])
def test_m3_configuration_derives_what_the_files_hold(tmp_path: Path, name: str) -> None:
    write_tiny_m3(SHAPES[name], tmp_path)
    assert tensors(open_subject(str(tmp_path))) == tensors(open_subject(str(tmp_path / "config.json")))


@pytest.mark.parametrize("name", ["plain", "tied", "mlp_bias", "explicit_head_dim"])
def test_llama_configuration_derives_what_the_files_hold(tmp_path: Path, name: str) -> None:
    write_tiny_llama(LLAMAS[name], tmp_path)
    read, derived = open_subject(str(tmp_path)), open_subject(str(tmp_path / "config.json"))
    assert tensors(read) == tensors(derived)
    assert read.parameters == derived.parameters
    assert "other" not in read.parameters


def tensors(subject: Subject) -> dict[str, tuple[str, tuple[int, ...], str, int]]:
    return {t.name: (t.kind.part, t.kind.info.shape, t.kind.info.dtype, t.kind.nbytes) for t in subject.tensors}


def test_gguf_has_the_same_parts_as_safetensors(tmp_path: Path) -> None:
    spec = SHAPES["release_selection"]
    write_tiny_m3(spec, tmp_path / "st")
    write_tiny_m3_gguf(spec, tmp_path / "m3.gguf")
    files, gguf = open_subject(str(tmp_path / "st")), open_subject(str(tmp_path / "m3.gguf"))
    assert {part: n for part, n in files.parameters.items() if part != "vision"} == gguf.parameters


def test_every_way_to_name_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    directory = tmp_path / "model"
    write_tiny_llama(LLAMAS["plain"], directory)
    pull(str(directory), name="mine")
    named = [open_subject(str(name)) for name in (directory, "mine", directory / "config.json")]
    (directory / "model.safetensors").unlink()
    named.append(open_subject(str(directory)))
    assert [subject.origin for subject in named] == ["files", "files", "configuration", "configuration"]
    assert len({tuple(sorted(subject.parameters.items())) for subject in named}) == 1
    with pytest.raises(ModelNotFoundError, match="no model 'nobody'"):
        open_subject("nobody")


def test_files_are_not_read_beyond_their_headers(tmp_path: Path) -> None:
    """A tensor of a terabyte in a sparse file: reading it would take the test's whole time."""
    shape = [2**19, 2**19]
    nbytes = 4 * shape[0] * shape[1]
    header = json.dumps({"model.embed_tokens.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, nbytes]}})
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header.encode())
        file.truncate(8 + len(header) + nbytes)
    (tmp_path / "config.json").write_text(json.dumps(llama_values()))
    assert open_subject(str(tmp_path)).nbytes == {"embeddings": nbytes}


def llama_values(**changes: Any) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "rms_norm_eps": 1e-5,
        **changes,
    }


@settings(max_examples=40, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "vocab_size": st.integers(1, 10**6),
            "hidden_size": st.sampled_from([64, 960, 8192]),
            "intermediate_size": st.integers(1, 10**5),
            "num_hidden_layers": st.integers(1, 130),
            "num_key_value_heads": st.sampled_from([1, 2, 4]),
            "tie_word_embeddings": st.booleans(),
            "attention_bias": st.booleans(),
            "mlp_bias": st.booleans(),
            "torch_dtype": st.sampled_from(["bfloat16", "float16", "float32"]),
        }
    )
)
def test_any_llama_by_the_formula(tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]) -> None:
    values = llama_values(**changes)
    subject = subject_of(tmp_path_factory.mktemp("llama"), values)
    c = LlamaConfig.from_hf(values, "test")
    hidden, q, kv, ff = c.hidden_size, c.num_q_heads * c.head_dim, c.num_kv_heads * c.head_dim, c.intermediate_size
    layer = hidden * (2 * q + 2 * kv + 3 * ff + 2)
    layer += (q + 2 * kv + hidden) * c.attention_bias + (2 * ff + hidden) * c.mlp_bias
    heads = 1 if c.tie_embeddings else 2
    total = heads * c.vocab_size * hidden + c.num_layers * layer + hidden
    assert sum(subject.parameters.values()) == total
    assert sum(subject.nbytes.values()) == total * (4 if changes["torch_dtype"] == "float32" else 2)


@pytest.mark.model
def test_checkpoint_and_subject_agree_on_bytes(default_model: Path) -> None:
    with open_checkpoint(default_model) as checkpoint:
        stored = sum(checkpoint.extent(name).nbytes for name in checkpoint.tensors)
    assert sum(open_subject(str(default_model), "none").nbytes.values()) == stored
