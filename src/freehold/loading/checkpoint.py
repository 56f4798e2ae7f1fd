"""A checkpoint: named tensors and a configuration, opened without reading the weights."""

from __future__ import annotations

import hashlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from freehold.core.errors import LoadError, ModelNotFoundError, TensorMismatchError
from freehold.loading.quoting import listed, quoted

if TYPE_CHECKING:
    import torch

    from freehold.loading.mapping import MappedFile
    from freehold.loading.quantized import QuantizedTensor

CheckpointFormat = Literal["safetensors", "gguf"]

INDEX_NAME = "model.safetensors.index.json"
JOURNAL_NAME = "quantize.journal"
"""Stands in a directory that `freehold quantize` has not finished; of a .gguf file, `<name>.journal` beside it."""
_SAMPLE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a file says about a tensor.

    shape: in torch's order, slowest axis first; a matrix is (out, in), whatever the file's own order is.
    dtype: the format's own word, such as "F32", "F16", "BF16", "F8_E4M3", "Q4_1" or "Q6_K"; of matrices that
    safetensors hold as small floats and scales, "MXFP8", "FP8" or "NVFP4".
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def numel(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Extent:
    """Where a tensor's bytes lie: `nbytes` bytes from byte `offset` of `files[file]` of its checkpoint."""

    file: int
    offset: int
    nbytes: int


class Checkpoint(ABC):
    """Tensors by name, over memory-mapped files.

    path: what was opened, absolute. format: "safetensors" or "gguf".
    config: config.json of a directory; of a GGUF file its metadata, key -> Python value, arrays as lists.
    generation_config: the directory's generation_config.json, or {}.
    tensors: name -> TensorInfo, in the order of the files; the scales of quantised matrices are left out.
    files: the files that hold tensors.

    Reading tensors from several threads is safe. A checkpoint is a context manager; see `close`.
    """

    format: ClassVar[CheckpointFormat]

    def __init__(
        self,
        *,
        path: Path,
        config: dict[str, Any],
        generation_config: dict[str, Any],
        tensors: Mapping[str, tuple[TensorInfo, Extent]],
        mapped: Sequence[MappedFile],
        seen: Mapping[str, TensorInfo] | None = None,
    ) -> None:
        """tensors: what the files hold. seen: what a model sees of it, if that is something else."""
        self.path = path
        self.config = config
        self.generation_config = generation_config
        self._stored: Mapping[str, TensorInfo] = MappingProxyType({n: info for n, (info, _) in tensors.items()})
        self.tensors: Mapping[str, TensorInfo] = self._stored if seen is None else MappingProxyType(dict(seen))
        self.files = [file.path for file in mapped]
        self._extents = {name: extent for name, (_, extent) in tensors.items()}
        self._mapped: tuple[MappedFile, ...] | None = tuple(mapped)
        self._digest: str | None = None

    @abstractmethod
    def tensor(self, name: str) -> torch.Tensor:
        """The tensor `name`, on the CPU, contiguous, of the shape that `tensors` gives.

        Types that torch has are views of the mapped file in the stored dtype. Writing to one changes this
        process's copy of the touched pages and never the file. Quantised ones come as new float32 tensors.
        Raises TensorMismatchError for a name that the checkpoint does not have, LoadError for a type that
        cannot be read and after `close`.
        """

    @abstractmethod
    def quantized(self, name: str) -> QuantizedTensor | None:
        """The tensor `name` as it is stored, or None if it is not quantised. Raises as `tensor` does."""

    @abstractmethod
    def _identity(self) -> Iterable[bytes]:
        """The bytes besides tensors that belong to the checkpoint's digest."""

    def extent(self, name: str) -> Extent:
        """Where the tensor's stored bytes lie, for those who stream them. Raises as `tensor` does.

        Of a matrix with scales beside it these are the codes.
        """
        try:
            return self._extents[name]
        except KeyError:
            raise TensorMismatchError(str(self.path), missing=[name]) from None

    def release(self, name: str) -> None:
        """The tensor is not needed for now: the memory of its pages goes back to the system. They are read again when
        they are touched; what was written into views of it is lost. Raises as `tensor` does."""
        extent = self.extent(name)
        self._open_files()[extent.file].release(extent.offset, extent.nbytes)

    def digest(self) -> str:
        """SHA-256, in hexadecimal, that tells this checkpoint from others without reading all of it.

        It covers the configuration, the files' headers (which hold every tensor's name, shape, type and
        place), the files' sizes, and of each tensor up to 4096 bytes from its middle, so that another
        fine-tune of the same architecture has another digest. It does not cover file names. It is an
        identity for caches, not a proof of integrity: a change of a few weights may escape it.
        """
        if self._digest is None:
            pieces = hashlib.sha256(b"freehold checkpoint 1\0")
            for piece in self._identity():
                pieces.update(len(piece).to_bytes(8, "little") + piece)
            for file in self._open_files():
                pieces.update(file.nbytes.to_bytes(8, "little"))
            for name, extent in sorted(self._extents.items()):
                info = self._stored[name]
                pieces.update(repr((name, info.shape, info.dtype, extent.nbytes)).encode())
                start = extent.offset + max(0, (extent.nbytes - _SAMPLE_BYTES) // 2)
                end = min(start + _SAMPLE_BYTES, extent.offset + extent.nbytes)
                pieces.update(self._open_files()[extent.file].buffer[start:end])
            self._digest = pieces.hexdigest()
        return self._digest

    def close(self) -> None:
        """Let go of the files. Tensors that were handed out stay valid, and keep their file mapped.

        Closing twice is no error; reading a tensor afterwards is a LoadError.
        """
        self._mapped = None

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, {len(self.tensors)} tensors)"

    def _seen(self, name: str) -> TensorInfo:
        try:
            return self.tensors[name]
        except KeyError:
            raise TensorMismatchError(str(self.path), missing=[name]) from None

    def _open_files(self) -> tuple[MappedFile, ...]:
        if self._mapped is None:
            raise LoadError(f"{self.path}: the checkpoint is closed; open it again to read tensors")
        return self._mapped


def open_checkpoint(path: str | Path, *, raw: bool = False) -> Checkpoint:
    """Open a checkpoint: check everything but the weights' values, and map the files.

    path: one of
      - a directory with config.json and safetensors: `model.safetensors`, or one `*.safetensors` file of
        another name, or shards named by `model.safetensors.index.json`;
      - a `.gguf` file; of a split one, any part (`name-00001-of-00003.gguf`), the others beside it;
      - a directory without safetensors whose only .gguf file, or only split one, is meant.

    raw: leave every quantization_config unread, so that tensors and their scales are seen as the files hold them.

    Raises ModelNotFoundError if nothing is there, CorruptFileError if the bytes contradict the format,
    ConfigError for a quantisation that is not read, TensorMismatchError for scales that do not fit their
    weights, LoadError if what is there cannot be used. Files may be hostile: time and memory are bounded by limits
    on headers, named in the modules that read them.
    """
    # os.path, unlike Path, takes any text for a path: one that cannot exist does not exist.
    path = Path(os.path.abspath(os.path.expanduser(path)))
    if os.path.isdir(path):
        return _open_directory(path, raw)
    if not os.path.exists(path):
        if os.path.exists(f"{path}.journal"):
            raise _unfinished(path)
        raise ModelNotFoundError(f"{path}: no such file or directory")
    if path.suffix.lower() == ".gguf":
        from freehold.loading.gguf import GgufCheckpoint

        return GgufCheckpoint.open(path)
    if path.suffix == ".safetensors":
        raise LoadError(
            f"{path}: is one file of a checkpoint; name its directory, {path.parent}, which has config.json"
        )
    raise LoadError(f"{path}: is neither a directory nor a .gguf file; only safetensors and GGUF are read")


def _unfinished(path: Path) -> LoadError:
    return LoadError(
        f"{path}: its quantisation was interrupted; give the same `freehold quantize` again to go on with it"
    )


def _open_directory(directory: Path, raw: bool) -> Checkpoint:
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        raise LoadError(f"{directory}: cannot be listed: {error.strerror}") from error
    if JOURNAL_NAME in names:
        raise _unfinished(directory)
    tensor_files = [name for name in names if name.endswith(".safetensors")]
    gguf_files = [name for name in names if name.lower().endswith(".gguf")]
    if tensor_files or INDEX_NAME in names:
        from freehold.loading.safetensors import SafetensorsCheckpoint

        return SafetensorsCheckpoint.open(directory, tensor_files, has_index=INDEX_NAME in names, raw=raw)
    if gguf_files:
        from freehold.loading.gguf import GgufCheckpoint, split_of

        splits = {split_of(Path(name)) for name in gguf_files}
        if len(gguf_files) == 1 or (len(splits) == 1 and None not in splits):
            return GgufCheckpoint.open(directory / gguf_files[0])
        raise LoadError(
            f"{directory}: holds {len(gguf_files)} GGUF files; name the one you mean:\n{listed(gguf_files)}"
        )
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickles:
        raise LoadError(
            f"{directory}: holds {quoted(pickles[0])} but no safetensors or GGUF file. Such files can run"
            " code when they are read, and are never opened here; look for a safetensors version of the model"
        )
    raise LoadError(f"{directory}: holds no *.safetensors and no *.gguf file")
