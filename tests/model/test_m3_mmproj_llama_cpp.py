"""The mmproj file that the other tests read is one that llama.cpp takes, with the features that transformers has."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from freehold.loading.checkpoint import open_checkpoint
from freehold.model.vision.names import PARTS
from support.tiny_m3 import TinyM3Spec, release_config, write_tiny_m3, write_tiny_m3_gguf
from support.tiny_m3_mmproj import MEAN, STD, vision_keys, vision_tensors, write_mmproj

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: pip install 'freehold[rivals]'")

SPEC = TinyM3Spec("vision", (0, 1), (0, 1), num_experts=4)
HEIGHT, WIDTH = 112, 140  # multiples of 28, and large enough that llama.cpp leaves them


def features_of_llama_cpp(text: Path, mmproj: Path, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    mtmd: Any = pytest.importorskip("llama_cpp.mtmd_cpp")
    model = llama_cpp.llama_model_load_from_file(bytes(text), llama_cpp.llama_model_default_params())
    params = mtmd.mtmd_context_params_default()
    params.use_gpu, params.warmup, params.n_threads = False, False, 1
    context = mtmd.mtmd_init_from_file(bytes(mmproj), model, params)
    assert context
    marker = mtmd.mtmd_get_marker(context)
    prompt = mtmd.mtmd_input_text(marker, len(marker), False, True)
    data = pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    bitmap = mtmd.mtmd_bitmap_init(WIDTH, HEIGHT, data)
    chunks = mtmd.mtmd_input_chunks_init()
    bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
    assert mtmd.mtmd_tokenize(context, chunks, ctypes.byref(prompt), bitmaps, 1) == 0
    image = mtmd.mtmd_input_chunks_get(chunks, 1)  # between the texts that begin and end an image
    assert mtmd.mtmd_encode_chunk(context, image) == 0
    tokens = mtmd.mtmd_input_chunk_get_n_tokens(image)
    found = np.ctypeslib.as_array(mtmd.mtmd_get_output_embd(context), (tokens * SPEC.hidden_size,)).copy()
    mtmd.mtmd_input_chunks_free(chunks)
    mtmd.mtmd_bitmap_free(bitmap)
    mtmd.mtmd_free(context)
    llama_cpp.llama_model_free(model)
    return found.reshape(tokens, SPEC.hidden_size)


def features_of_transformers(model: Any, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A still image twice, cut into patches whose order is that of merged tokens."""
    scaled = (torch.from_numpy(pixels) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    rows, columns = HEIGHT // 14, WIDTH // 14
    tiles = (
        scaled.permute(2, 0, 1).view(3, 1, rows // 2, 2, 14, columns // 2, 2, 14).expand(-1, 2, -1, -1, -1, -1, -1, -1)
    )
    patches = tiles.permute(2, 5, 3, 6, 0, 1, 4, 7).reshape(rows * columns, -1)
    with torch.no_grad():
        features = model.model.get_image_features(patches, torch.tensor([[1, rows, columns]])).pooler_output
    found: NDArray[np.float32] = features[0].numpy()
    return found


def test_features_agree(tmp_path: Path) -> None:
    """Up to the half precision that llama.cpp rounds to: 2**-11 of the largest products, some dozens of them."""
    model = write_tiny_m3(SPEC, tmp_path / "release")
    write_tiny_m3_gguf(SPEC, tmp_path / "text.gguf")
    with open_checkpoint(tmp_path / "release") as checkpoint:
        weights = {name: checkpoint.tensor(name).numpy() for name in checkpoint.tensors if name.startswith(PARTS)}
        write_mmproj(tmp_path / "mmproj.gguf", vision_keys(release_config(SPEC)), vision_tensors(weights, head_dim=16))
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    found = features_of_llama_cpp(tmp_path / "text.gguf", tmp_path / "mmproj.gguf", pixels)
    expected = features_of_transformers(model, pixels)
    assert found.shape == expected.shape
    assert float(np.abs(found - expected).max()) < 0.005 * float(expected.std())
