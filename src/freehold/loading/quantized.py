"""Weights as they are stored: packed codes and their scales, which can be computed with or expanded."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

from freehold.core.axes import ceil_div
from freehold.core.coded import CodedWeight
from freehold.core.errors import ArgumentError, LoadError
from freehold.loading import ggml_blocks, scaled_floats
from freehold.loading.ggml_codes import ggml_codes
from freehold.loading.quoting import quoted

# Elements that a thread expands at a time: a megabyte of float32, which stays in the processor's cache while NumPy's
# operations pass over it.
_CHUNK_ELEMENTS = 2**18

ScaledKind = Literal["MXFP8", "FP8", "NVFP4"]


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedTensor(ABC):
    """A quantised weight, without a copy: its tensors are views of the mapped file.

    where, name: the checkpoint's path and the tensor's name, for messages. kind: as `TensorInfo.dtype` has it.
    shape: the weight's own, (..., out, in). data: uint8 (*shape[:-1], bytes of a row).
    """

    where: str
    name: str
    kind: str
    shape: tuple[int, ...]
    data: torch.Tensor

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weight as a new tensor of float32 or bfloat16. Codes for NaN and infinite scales are passed on.

        bfloat16 is the float32 value rounded to nearest, ties to even; see `lossless_dtype`. It needs the result's own
        memory and a few megabytes for each thread. Raises ArgumentError for another dtype, LoadError if memory does not
        suffice or the kind cannot be read.
        """
        return self.rows(0, math.prod(self.shape[:-1]), dtype).view(self.shape)

    def rows(self, first: int, last: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Rows [first, last) as `dequantize` has them, (last - first, columns); those of a stack are counted through.
        Raises as `dequantize`."""
        if dtype not in (torch.float32, torch.bfloat16):
            raise ArgumentError(f"dtype is {dtype}; weights are dequantised to float32 or bfloat16")
        try:
            out = torch.empty((last - first, self.shape[-1]), dtype=dtype)
        except (RuntimeError, MemoryError) as error:  # torch says it with a RuntimeError
            nbytes, word = (last - first) * self.shape[-1] * dtype.itemsize, str(dtype).removeprefix("torch.")
            raise LoadError(
                f"{self.where}: tensor {quoted(self.name)} takes {nbytes} bytes as {word}, and there is no memory for"
                " that"
            ) from error
        self._fill(first, out)
        return out

    @property
    @abstractmethod
    def lossless_dtype(self) -> torch.dtype:
        """bfloat16 if it holds every value of this tensor exactly, and float32 otherwise."""

    def codes(self) -> CodedWeight | None:
        """The matrix as codes with scales, which kernels compute with; None if it is better expanded."""
        return None

    @abstractmethod
    def part(self, index: int) -> QuantizedTensor:
        """One weight of a stack, without a copy: what `index` selects along the first axis."""

    @abstractmethod
    def _unit(self) -> int:
        """Elements of the smallest part that can be expanded by itself."""

    @abstractmethod
    def _decode(self, first: int, last: int, out: NDArray[np.float32]) -> None:
        """Expand units [first, last) into out (last - first, elements of a unit)."""

    def _fill(self, first_row: int, out: torch.Tensor) -> None:
        unit = self._unit()
        begin, count = (first_row * self.shape[-1] // unit, out.numel() // unit) if unit else (0, 0)
        narrow = out.dtype == torch.bfloat16
        target = (out.view(torch.uint16) if narrow else out).numpy().reshape(count, unit)
        step = max(1, _CHUNK_ELEMENTS // max(unit, 1))

        def expand(first: int) -> None:
            last = min(first + step, count)
            # Scales that are infinite or not a number are the file's, and are passed on without a warning.
            with np.errstate(all="ignore"):
                if narrow:
                    wide = np.empty((last - first, unit), np.float32)
                    self._decode(begin + first, begin + last, wide)
                    target[first:last] = scaled_floats.bfloat16_codes(wide)
                else:
                    self._decode(begin + first, begin + last, target[first:last])

        firsts = range(0, count, step)
        threads = min(len(firsts), torch.get_num_threads())
        if threads <= 1:
            for first in firsts:
                expand(first)
            return
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(expand, firsts):
                pass


@dataclass(frozen=True, slots=True, eq=False)
class GgmlTensor(QuantizedTensor):
    """A weight in GGML's blocks, which hold their own scales. A row is a whole number of blocks."""

    @property
    def lossless_dtype(self) -> torch.dtype:
        """See `QuantizedTensor.lossless_dtype`: of GGML's types only MXFP4 has so few bits."""
        return torch.bfloat16 if self.kind == "MXFP4" else torch.float32

    def codes(self) -> CodedWeight | None:
        """See `QuantizedTensor.codes`."""
        return ggml_codes(self.kind, self.shape, self.data)

    def part(self, index: int) -> GgmlTensor:
        """See `QuantizedTensor.part`."""
        return GgmlTensor(self.where, f"{self.name}[{index}]", self.kind, self.shape[1:], self.data[index])

    def _unit(self) -> int:
        block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[self.kind]]
        return int(block)

    def _decode(self, first: int, last: int, out: NDArray[np.float32]) -> None:
        kind = gguf.GGMLQuantizationType[self.kind]
        _, block_nbytes = gguf.GGML_QUANT_SIZES[kind]
        blocks = self.data.view(-1, block_nbytes).numpy()[first:last]
        decoder = ggml_blocks.DECODERS.get(self.kind)
        if decoder is not None:
            decoder(blocks, out)
            return
        try:
            out[...] = gguf.dequantize(blocks.reshape(1, -1), kind).reshape(out.shape)
        except NotImplementedError as error:
            raise LoadError(
                f"{self.where}: tensor {quoted(self.name)} is {self.kind}, which the gguf package cannot dequantise."
                " Use another quantisation of the model"
            ) from error


@dataclass(frozen=True, slots=True, eq=False)
class ScaledTensor(QuantizedTensor):
    """A matrix of small floats with scales beside it: MXFP8, FP8 or NVFP4, as safetensors hold them.

    data: uint8 (out, in) of FP8 (E4M3) codes; for NVFP4 (out, in / 2), the even column's FP4 (E2M1) code in the low
    bits. scales: (ceil(out / block[0]), ceil(in / block[1])): uint8 exponents (E8M0) of MXFP8, float8_e4m3fn of NVFP4,
    float32 or bfloat16 of FP8. block: rows and columns that share a scale. tensor_scale: NVFP4's second, for all.
    A value is code * (scale * tensor_scale), each product rounded to float32, as ModelOpt has it. MXFP8 needs no
    rounding, FP8 one.
    """

    kind: ScaledKind
    scales: torch.Tensor
    block: tuple[int, int]
    tensor_scale: float = 1.0

    @property
    def lossless_dtype(self) -> torch.dtype:
        """See `QuantizedTensor.lossless_dtype`: MXFP8, unless a scale is so small that values lose their last bits."""
        exact = self.kind == "MXFP8" and all(map(self._fits_bfloat16, self._doubtful_rows()))
        return torch.bfloat16 if exact else torch.float32

    def _doubtful_rows(self) -> list[int]:
        """Rows of scales among which are some of MXFP8 so small that not every code has a bfloat16."""
        small = self.scales.numpy() < scaled_floats.SMALLEST_BFLOAT16_EXPONENT
        return [int(row) for row in np.flatnonzero(small.any(axis=1))]

    def _fits_bfloat16(self, row: int) -> bool:
        """Whether bfloat16 holds the values below this row of scales: those of the smallest scale are often zeros."""
        first, last = row * self.block[0], min((row + 1) * self.block[0], self.shape[0])
        bits = self.rows(first, last).view(torch.int32)
        return not bool((bits & 0xFFFF).any())

    def codes(self) -> CodedWeight | None:
        """See `QuantizedTensor.codes`: those of NVFP4, whose rows are whole blocks. FP8's have no form of their own."""
        if self.kind != "NVFP4" or self.shape[1] % self.block[1]:
            return None
        codes = torch.stack([self.data & 15, self.data >> 4], dim=2).view(self.shape)
        with np.errstate(all="ignore"):
            scales = torch.from_numpy(self._scale_values(0, self.shape[0]))
        return CodedWeight(4, codes, scales, None, tuple(map(float, scaled_floats.E2M1)))

    def part(self, index: int) -> ScaledTensor:
        """See `QuantizedTensor.part`. These weights are not stacked: always an ArgumentError."""
        raise ArgumentError(
            f"{self.where}: tensor {quoted(self.name)} is one matrix of {self.kind}; it has no part {index}"
        )

    def _unit(self) -> int:
        return self.shape[1]

    def _decode(self, first: int, last: int, out: NDArray[np.float32]) -> None:
        codes = self.data[first:last].numpy()
        if self.kind == "NVFP4":
            scaled_floats.e2m1_pairs(codes, out)
        else:
            scaled_floats.e4m3(codes, out)
        num_rows, num_columns = self.block
        above = first // num_rows
        scales = self._scale_values(above, ceil_div(last, num_rows))
        if num_rows > 1:
            scales = scales[np.arange(first, last) // num_rows - above]
        if self.shape[1] % num_columns:
            out *= np.repeat(scales, num_columns, axis=1)[:, : self.shape[1]]
        else:
            blocks = out.reshape(*scales.shape, num_columns)
            blocks *= scales[:, :, None]

    def _scale_values(self, first: int, last: int) -> NDArray[np.float32]:
        scales = self.scales[first:last]
        values: NDArray[np.float32]
        if self.kind == "MXFP8":
            values = scaled_floats.E8M0[scales.numpy()]
        elif self.kind == "NVFP4":
            values = scaled_floats.E4M3[scales.view(torch.uint8).numpy()] * np.float32(self.tensor_scale)
        else:
            values = scales.float().numpy()
        return values
