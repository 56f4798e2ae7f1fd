"""Packed checkpoints: what stands in them, what a model makes of them, and what an interruption leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import freehold
from freehold.core.errors import ArgumentError, LoadError, TensorMismatchError
from freehold.loading.checkpoint import JOURNAL_NAME, open_checkpoint
from freehold.loading.quantized import QuantizedTensor
from freehold.quantize import target as targets
from freehold.quantize import values
from freehold.quantize.job import Written, quantize
from freehold.quantize.recipe import Bits
from support.checkpoints_raw import ARRAY, STRING, U32, array, key, text
from support.portable_random import portable_tokens
from support.quantised_m3 import copy_gguf, write_quantised_m3
from support.tiny_llama import LLAMAS, write_tiny_llama
from support.tiny_m3 import TinyM3Spec, write_tiny_m3, write_tiny_m3_gguf

SPEC = TinyM3Spec("packed", (0, 1), (0, 1), num_experts=4, topk=2, block_tokens=32, expert_size=64)
TOKENS = [int(token) for token in portable_tokens(100, seed=1, name="packed")]


class StopHereError(Exception):
    """What interrupts a quantisation."""


def logits(path: Path, impl: str = "native") -> torch.Tensor:
    with freehold.LLM(path, impl=impl) as llm:
        return llm.logits(TOKENS)


def pack(source: Path, out: Path, bits: Bits = 4, *, stop_after: int | None = None) -> Written:
    """stop_after: pieces, after which it is interrupted."""
    count = 0

    def progress(_what: str, _done: int, _total: int | None) -> None:
        nonlocal count
        count += 1
        if count == stop_after:
            raise StopHereError

    with open_checkpoint(source) as checkpoint:
        return quantize(checkpoint, out, bits, progress=progress)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "source"
    write_tiny_m3(SPEC, path)
    return path


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "source.gguf"
    write_tiny_m3_gguf(SPEC, path)
    return path


def floats_of(packed: Path, out: Path) -> Path:
    """The checkpoint with what its blocks stand for as floats, by the gguf package."""
    config = json.loads((packed / "config.json").read_text())
    quantization = config.pop("quantization_config")
    kinds = {name: kind for kind, names in quantization["tensors"].items() for name in names}
    tensors = {}
    for file in sorted(packed.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            if tensor.dtype == torch.uint8:
                kind = gguf.GGMLQuantizationType[kinds.get(name, quantization["default"])]
                tensor = torch.from_numpy(gguf.dequantize(tensor.numpy(), kind))
            tensors[name] = tensor
    out.mkdir()
    save_file(tensors, out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (out / name).write_bytes((packed / name).read_bytes())
    return out


@pytest.mark.parametrize("bits", [8, 4])
def test_a_directory_means_its_blocks(directory: Path, tmp_path: Path, bits: Bits) -> None:
    packed = tmp_path / "out"
    pack(directory, packed, bits)
    plain = floats_of(packed, tmp_path / "plain")
    for impl in ("native", "reference"):
        assert torch.equal(logits(packed, impl), logits(plain, impl))
    off = logits(packed) - logits(directory)
    assert 0 < off.abs().mean() < (0.1 if bits == 8 else 1.0)


def test_what_is_no_matrix_is_copied(directory: Path, tmp_path: Path) -> None:
    pack(directory, tmp_path / "out")
    before, after = load_file(directory / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    copied = [name for name in before if after[name].dtype != torch.uint8]
    assert any("vision_tower" in name for name in copied)
    assert any(".gate.weight" in name for name in copied)  # a router
    for name in copied:
        assert torch.equal(before[name].view(torch.uint8), after[name].view(torch.uint8)), name
    quantization = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert quantization["default"] == "Q4_1"
    delicate = quantization["tensors"]["Q8_0"]
    language = {name for name in before if name.startswith("language_model.")}
    assert {name for name in language if "self_attn" in name and name.endswith("proj.weight")} <= set(delicate)
    assert not any("experts" in name or "mlp" in name for name in delicate)
    assert any("lm_head" in name for name in delicate)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_gguf_file_means_its_blocks(gguf_file: Path, tmp_path: Path, bits: Bits) -> None:
    packed, plain = tmp_path / "out.gguf", tmp_path / "plain.gguf"
    pack(gguf_file, packed, bits)
    copy_gguf(packed, plain)
    assert torch.equal(logits(packed), logits(plain))
    before, after = gguf.GGUFReader(gguf_file), gguf.GGUFReader(packed)
    ours = {"GGUF.kv_count", "GGUF.tensor_count", "GGUF.version", "general.file_type"}
    for name in before.fields.keys() - ours:
        assert before.fields[name].contents() == after.fields[name].contents(), name
    assert after.fields["general.quantization_version"].contents() == gguf.GGML_QUANT_VERSION
    for one, other in zip(before.tensors, after.tensors, strict=True):
        assert (one.name, list(one.shape)) == (other.name, list(other.shape))


def test_a_llama_and_a_release_with_scales(tmp_path: Path) -> None:
    """A matrix of 48 columns has no whole blocks and stays; MXFP8 is expanded before it is encoded."""
    write_tiny_llama(next(iter(LLAMAS.values())), tmp_path / "llama")
    pack(tmp_path / "llama", tmp_path / "llama8", 8)
    assert (logits(tmp_path / "llama8") - logits(tmp_path / "llama")).abs().mean() < 0.1
    release = write_quantised_m3(replace(SPEC, expert_size=48), tmp_path / "release", "MXFP8")
    pack(release / "packed", tmp_path / "from_scales", 8)
    pack(release / "plain", tmp_path / "from_floats", 8)
    assert torch.equal(logits(tmp_path / "from_scales"), logits(tmp_path / "from_floats"))
    config = json.loads((tmp_path / "from_scales" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "freehold"


def content(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else sorted(path.iterdir())
    return {file.name.replace(path.stem, "out"): file.read_bytes() for file in files}


@pytest.mark.parametrize("form", ["directory", "gguf"])
def test_an_interrupted_one_goes_on(
    form: str, directory: Path, gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "SHARD_BYTES", 250_000)
    monkeypatch.setattr("freehold.quantize.job.SYNC_BYTES", 50_000)
    source, end = (directory, "") if form == "directory" else (gguf_file, ".gguf")
    whole = pack(source, tmp_path / f"whole{end}")
    out = tmp_path / f"out{end}"
    for number, stop in enumerate((1, 12, 9, 4)):
        with pytest.raises(StopHereError):
            pack(source, out, stop_after=stop)
        with pytest.raises(LoadError, match="interrupted; give the same `freehold quantize` again"):
            open_checkpoint(out)
        if number == 1:  # a torn last line, as a power cut leaves it
            journal = out / JOURNAL_NAME if form == "directory" else Path(f"{out}.journal")
            with journal.open("ab") as file:
                file.write(b'{"name": "torn')
    done = pack(source, out)
    assert 0 < done.resumed < len(done.done)
    assert done.done == whole.done
    assert content(out) == content(tmp_path / f"whole{end}")
    if form == "directory":
        assert len(list(out.glob("*.safetensors"))) > 2


def test_a_killed_one_goes_on(directory: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of a tensor."""
    program = (
        "import sys, time\nfrom pathlib import Path\nimport freehold.quantize.job as job\n"
        "from freehold.loading.checkpoint import open_checkpoint\njob.SYNC_BYTES = 10000\ncount = 0\n"
        "def progress(*_):\n    global count\n    count += 1\n"
        "    if count == 40:\n        print('now', flush=True)\n        time.sleep(60)\n"
        "job.quantize(open_checkpoint(sys.argv[1]), Path(sys.argv[2]), 4, progress=progress)\n"
    )
    out = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", program, directory, out], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "now\n"
        os.kill(child.pid, signal.SIGKILL)
    done = pack(directory, out)
    assert done.resumed > 10
    pack(directory, tmp_path / "whole")
    assert content(out) == content(tmp_path / "whole")


@pytest.mark.parametrize("form", ["directory", "gguf"])
def test_one_that_stopped_behind_its_last_tensor_goes_on(
    form: str, directory: Path, gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files have their names by then, or some of them have."""
    monkeypatch.setattr(targets, "SHARD_BYTES", 250_000)
    source, end = (directory, "") if form == "directory" else (gguf_file, ".gguf")
    pack(source, tmp_path / f"whole{end}")
    out = tmp_path / f"out{end}"
    target = targets.DirectoryTarget if form == "directory" else targets.GgufTarget

    def full(_target: targets.Target) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(target, "finish", full)
        with pytest.raises(LoadError, match="the same command goes on from it"):
            pack(source, out)
    if form == "directory":
        last = sorted(out.glob("*.safetensors"))[-1]
        last.rename(last.with_name(f"{last.name}.partial"))
    pack(source, out)
    assert content(out) == content(tmp_path / f"whole{end}")


@pytest.mark.parametrize("lost", ["missing", "short", "foreign"])
def test_bytes_that_the_journal_has_and_the_disk_has_not_are_made_again(
    lost: str, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "SHARD_BYTES", 250_000)
    monkeypatch.setattr("freehold.quantize.job.SYNC_BYTES", 10_000)
    whole = pack(directory, tmp_path / "whole")
    out = tmp_path / "out"
    with pytest.raises(StopHereError):
        pack(directory, out, stop_after=len(whole.done) - 1)
    first, *rest = sorted(out.glob("*.partial"))
    assert rest
    if lost == "missing":
        first.unlink()
    elif lost == "short":
        os.truncate(first, first.stat().st_size // 2)
    else:
        first.write_bytes(bytes(first.stat().st_size))
    done = pack(directory, out)
    assert (done.resumed > 0) == (lost == "short")
    assert done.done == whole.done
    assert content(out) == content(tmp_path / "whole")


def test_a_line_that_a_full_disk_cut_is_all_that_is_lost(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the disk is still full when it goes on, so that nothing can be written."""
    monkeypatch.setattr("freehold.quantize.job.SYNC_BYTES", 1)
    out, write = tmp_path / "out", os.write

    def cut(file: int, data: bytes) -> int:
        write(file, data[:7])
        raise OSError(28, "No space left on device")

    with pytest.raises(StopHereError):
        pack(directory, out, stop_after=20)
    before = (out / JOURNAL_NAME).read_bytes()
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr("freehold.quantize.journal.os.write", cut)
            with pytest.raises(LoadError, match=r"No space left on device; .*the same command goes on from it"):
                pack(directory, out)
        assert (out / JOURNAL_NAME).read_bytes()[: len(before)] == before
    assert pack(directory, out).resumed == before.count(b"\n") - 1
    pack(directory, tmp_path / "whole")
    assert content(out) == content(tmp_path / "whole")


@pytest.mark.parametrize("form", ["directory", "gguf"])
def test_one_process_at_a_time(form: str, directory: Path, gguf_file: Path, tmp_path: Path) -> None:
    source, out = (directory, tmp_path / "out") if form == "directory" else (gguf_file, tmp_path / "out.gguf")
    refused = False

    def progress(*_: object) -> None:
        nonlocal refused
        if not refused:
            with pytest.raises(LoadError, match="another process is quantising to this place"):
                pack(source, out)
            refused = True

    with open_checkpoint(source) as checkpoint:
        quantize(checkpoint, out, 4, progress=progress)
    assert refused
    pack(source, tmp_path / f"whole{out.suffix}")
    assert content(out) == content(tmp_path / f"whole{out.suffix}")


def test_a_matrix_is_expanded_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its codes are does not depend on the pieces; none of the source's matrices is in memory as a whole."""
    release = write_quantised_m3(SPEC, tmp_path / "release", "FP8")
    for number, (source, end) in enumerate(((release / "packed", ""), (codes_of(release, tmp_path), ".gguf"))):
        whole, out = tmp_path / f"whole{number}{end}", tmp_path / f"out{number}{end}"
        pack(source, whole, 8)
        with monkeypatch.context() as patch:
            patch.setattr(values, "_PIECE_ELEMENTS", 1000)
            patch.delattr(QuantizedTensor, "dequantize")
            pack(source, out, 8)
        assert content(out) == content(whole)


def codes_of(release: Path, place: Path) -> Path:
    """The same model in GGUF, with stacks of experts as codes."""
    write_tiny_m3_gguf(SPEC, place / "floats.gguf")
    pack(place / "floats.gguf", place / "codes.gguf", 4)
    return place / "codes.gguf"


def test_a_gguf_file_keeps_its_alignment_and_lists_that_are_empty(gguf_file: Path, tmp_path: Path) -> None:
    source, packed, plain = tmp_path / "source.gguf", tmp_path / "out.gguf", tmp_path / "plain.gguf"
    copy_gguf(gguf_file, source, alignment=256)
    keys = [key("empty.texts", ARRAY, array(STRING, b"", 0)), key("empty.numbers", ARRAY, array(U32, b"", 0))]
    data, filler = source.read_bytes(), -sum(map(len, keys)) - len(key("rest", STRING, text("")))
    keys.append(key("rest", STRING, text(" " * (filler % 256))))  # tensors move by a multiple of the alignment
    count = int.from_bytes(data[16:24], "little") + len(keys)
    source.write_bytes(data[:16] + count.to_bytes(8, "little") + b"".join(keys) + data[24:])
    pack(source, packed)
    reader = gguf.GGUFReader(packed)
    assert {tensor.data_offset % 256 for tensor in reader.tensors} == {0}
    with open_checkpoint(packed) as checkpoint:
        assert checkpoint.config["empty.texts"] == checkpoint.config["empty.numbers"] == []
        assert checkpoint.config["general.alignment"] == 256
    pack(gguf_file, plain)
    assert torch.equal(logits(packed), logits(plain))


def test_another_task_in_the_same_place(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(StopHereError):
        pack(directory, tmp_path / "out", 4, stop_after=3)
    with pytest.raises(ArgumentError, match=r"another quantisation was begun here, with another bits"):
        pack(directory, tmp_path / "out", 8)


def test_places_that_are_taken(directory: Path, gguf_file: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("")
    (tmp_path / "empty.gguf").mkdir()
    for source, out, message in (
        (directory, tmp_path / "taken", "is there already"),
        (directory, directory, "is the model itself"),
        (gguf_file, gguf_file, "is the model itself"),
        (gguf_file, tmp_path / "name", "end its name in .gguf"),
        (gguf_file, tmp_path / "empty.gguf", "is a directory"),  # said now, and not when all is computed
        (directory, tmp_path / "name.gguf", "the model is a directory, and so will this be"),
    ):
        with pytest.raises(ArgumentError, match=message):
            pack(source, out)
    assert (tmp_path / "taken" / "mine").exists()


@pytest.mark.parametrize("name", ["out.gguf", "out.gguf.partial", "out"])
def test_a_link_that_leads_nowhere_stays(name: str, directory: Path, gguf_file: Path, tmp_path: Path) -> None:
    (tmp_path / name).symlink_to(tmp_path / "unplugged" / name)
    with pytest.raises(ArgumentError, match=rf"{name}: is there already; name another place, or remove it"):
        pack(directory if name == "out" else gguf_file, tmp_path / name.removesuffix(".partial"))
    assert (tmp_path / name).is_symlink()
    assert len(list(tmp_path.iterdir())) == 1


def test_the_working_directory_is_a_place_that_is_taken(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError, match=r"\.: is there already; name another place, or remove it"):
        pack(directory, Path())
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    "text", ["mine", "mine\n", '{"version": 1}\n', '{"version": 1, "source": "mine', "[1]\n", "\n\n"]
)
@pytest.mark.parametrize("form", ["directory", "gguf"])
def test_a_file_with_the_journals_name_stays(
    form: str, text: str, directory: Path, gguf_file: Path, tmp_path: Path
) -> None:
    source, out = (directory, tmp_path / "out") if form == "directory" else (gguf_file, tmp_path / "out.gguf")
    journal = out / JOURNAL_NAME if form == "directory" else tmp_path / "out.gguf.journal"
    journal.parent.mkdir(exist_ok=True)
    journal.write_text(text)
    for _ in range(2):
        with pytest.raises(ArgumentError, match=rf"{journal}: .*is no such journal; move it, or name another place"):
            pack(source, out)
    assert [path.read_text() for path in journal.parent.iterdir()] == [text]


def test_a_pipe_with_the_journals_name_is_not_waited_for(gguf_file: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "out.gguf.journal")
    with pytest.raises(ArgumentError, match=r"out\.gguf\.journal: .*is no such journal"):
        pack(gguf_file, tmp_path / "out.gguf")


def test_a_file_with_the_partial_ones_name_stays(gguf_file: Path, tmp_path: Path) -> None:
    """Also where a quantisation was begun, and the file was put there later."""
    out, partial = tmp_path / "out.gguf", tmp_path / "out.gguf.partial"
    partial.write_text("mine")
    with pytest.raises(ArgumentError, match=rf"{partial}: is there already; name another place, or remove it"):
        pack(gguf_file, out)
    assert list(tmp_path.iterdir()) == [partial]
    partial.unlink()
    with pytest.raises(StopHereError):
        pack(gguf_file, out, stop_after=3)
    written = partial.read_bytes()
    for name in (partial, out):
        name.write_text("mine")
        with pytest.raises(ArgumentError, match=rf"{name}: would be written over, and is not what .* left; move it"):
            pack(gguf_file, out)
        assert name.read_text() == "mine"
        partial.write_bytes(written)
    out.unlink()
    pack(gguf_file, out)
    pack(gguf_file, tmp_path / "whole.gguf")
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()


@pytest.mark.parametrize("kept", [0, 30])
def test_a_first_line_that_was_cut_is_written_anew(kept: int, gguf_file: Path, tmp_path: Path) -> None:
    out, journal = tmp_path / "out.gguf", tmp_path / "out.gguf.journal"
    with pytest.raises(StopHereError):
        pack(gguf_file, out, stop_after=1)
    os.truncate(journal, kept)
    pack(gguf_file, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gguf"]


@pytest.mark.parametrize("end", ["", ".gguf"])
def test_a_path_that_cannot_be(end: str, directory: Path, gguf_file: Path, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="cannot be written: File name too long"):
        pack(gguf_file if end else directory, tmp_path / ("n" * 300 + end))


def test_a_result_is_not_made_of_two_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was fetched again differs where no sample of the tensor is taken, and has the sizes of before."""
    monkeypatch.setattr("freehold.quantize.job.SYNC_BYTES", 1)
    write_tiny_m3(SPEC, tmp_path / "source")
    with pytest.raises(StopHereError):
        pack(tmp_path / "source", tmp_path / "out", stop_after=20)
    with open_checkpoint(tmp_path / "source") as checkpoint:
        begin = checkpoint.extent("language_model.lm_head.weight").offset
    with (tmp_path / "source" / "model.safetensors").open("r+b") as file:
        file.seek(begin)
        file.write(bytes(4))
    with pytest.raises(ArgumentError, match="another quantisation was begun here, with another source"):
        pack(tmp_path / "source", tmp_path / "out")


def test_a_source_that_changes_while_it_is_read(tmp_path: Path) -> None:
    write_tiny_m3(SPEC, tmp_path / "source")
    file = tmp_path / "source" / "model.safetensors"

    def change(what: str, done: int, total: int) -> None:
        if done == total:
            with file.open("r+b") as opened:
                opened.seek(-1, os.SEEK_END)
                opened.write(b"?")

    def replace_file(what: str, done: int, total: int) -> None:
        if done == total:
            file.unlink()

    with open_checkpoint(tmp_path / "source") as checkpoint:
        with pytest.raises(LoadError, match=rf"{file}: was changed while it was quantised"):
            quantize(checkpoint, tmp_path / "out", 4, progress=change)
        with pytest.raises(LoadError, match="its quantisation was interrupted"):
            open_checkpoint(tmp_path / "out")
        quantize(checkpoint, tmp_path / "other", 4, progress=replace_file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: None, r"missing \(1\):\s+language_model.model.norm.weight"),
        (lambda w: w.double(), "language_model.lm_head.weight: is F64, must be F32, BF16, F16 or quantised"),
    ],
)
def test_a_model_that_does_not_load_is_refused_before_anything_is_written(
    change: Callable[[torch.Tensor], torch.Tensor | None], message: str, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    write_tiny_m3(SPEC, source)
    weights = load_file(source / "model.safetensors")
    name = "language_model.lm_head.weight" if "lm_head" in message else "language_model.model.norm.weight"
    changed = change(weights.pop(name))
    save_file({**weights, **({} if changed is None else {name: changed})}, source / "model.safetensors")
    with pytest.raises(TensorMismatchError, match=message):
        pack(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    write_tiny_m3(SPEC, tmp_path / "source")
    file = tmp_path / "source" / "model.safetensors"
    tensors = load_file(file)
    name = next(n for n in tensors if n.endswith("layers.1.self_attn.o_proj.weight"))
    tensors[name][3, 4] = float("inf")
    save_file(tensors, file)
    with pytest.raises(LoadError, match=rf"tensor '{name}' has values that are not finite"):
        pack(tmp_path / "source", tmp_path / "out")


def test_a_full_disk_says_how_to_go_on(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("freehold.quantize.job.os.fsync", fsync)
        with pytest.raises(LoadError, match=r"No space left on device; .*the same command goes on from it"):
            pack(directory, tmp_path / "out")
    pack(directory, tmp_path / "out")
    assert np.isfinite(logits(tmp_path / "out").numpy()).all()
