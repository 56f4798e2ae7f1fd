"""Experts that stay on the disk: those in use lie in a fixed number of places in memory."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from freehold.core.errors import ConfigError, CorruptFileError
from freehold.core.memory import large_empty
from freehold.kernels import Experts, PackedWeight
from freehold.loading.checkpoint import Checkpoint
from freehold.loading.content_digest import content_digest
from freehold.loading.expert_file import ALIGNMENT, WAY_OUT, ExpertFile, ExpertWriter, Region, listing
from freehold.loading.home import experts_dir
from freehold.loading.quoting import quoted
from freehold.model.compute import Compute, NativeCompute
from freehold.model.expert_form import bytes_of, check_form, form_of, weight_in
from freehold.model.weights import ExpertMatrix, Source

_log = logging.getLogger("freehold.model")

PARTS = ("gate", "up", "down")
_READERS = 4
"""Reads at the same time: what a disk needs to be fast. They wait, and take no processor from the products."""

Key = tuple[int, int]
"""Layer and expert."""


@dataclass(slots=True)
class StreamStats:
    """hits, misses: experts that were in memory when a layer needed them, or were not. nbytes: read from the disk.
    waited: seconds in which nothing could be computed because of that."""

    hits: int = 0
    misses: int = 0
    nbytes: int = 0
    waited: float = 0.0


class ExpertCache:
    """Places for experts of all layers. The one that was used longest ago gives way. Not for several threads."""

    def __init__(self, file: ExpertFile, budget: int, *, coded_inputs: bool = False) -> None:
        """budget: bytes of the places. coded_inputs: see `PackedWeight`.

        Raises ConfigError if they hold fewer than two experts.
        """
        self.file, self.stats = file, StreamStats()
        self._coded_inputs = coded_inputs
        layers = sorted({layer for layer, _ in file.regions})
        sizes = _place_sizes(file.regions)
        size = sum(sizes.values())
        _check_budget(budget, size)
        self.num_places = min(budget // size, len(layers) * file.num_experts)
        self._memory = _aligned(self.num_places, size)
        begins = {"gate": 0, "up": sizes["gate"], "down": sizes["gate"] + sizes["up"]}
        self._buffers = [
            {part: place[begins[part] : begins[part] + sizes[part]] for part in PARTS} for place in self._memory
        ]
        self._free = list(range(self.num_places))
        self._places: OrderedDict[Key, int] = OrderedDict()  # oldest use first
        self._weights: dict[tuple[int, str, str], PackedWeight] = {}  # place, part, form
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="freehold-experts")

    def waves(self, layer: int, experts: Sequence[int], set_: Experts) -> Iterator[list[int]]:
        """Puts the wanted experts into their places in `set_`, and says which are there until the next ones are asked
        for: first those in memory, while others are read, then these as they come. Raises LoadError."""
        here = [e for e in experts if (layer, e) in self._places]
        coming = [e for e in experts if (layer, e) not in self._places]
        self.stats.hits += len(here)
        self.stats.misses += len(coming)
        for expert in here:
            self._places.move_to_end((layer, expert))
        reading: dict[Future[int], tuple[int, int]] = {}  # bytes -> expert, place
        pinned = set(here)
        try:
            while here or coming or reading:
                while coming and (place := self._room(layer, pinned)) is not None:
                    expert = coming.pop(0)
                    reading[self._readers.submit(self._read, layer, expert, place)] = expert, place
                if not here:
                    here = self._arrived(layer, reading)
                for expert in here:
                    set_.set(expert, self._network(layer, self._places[layer, expert]))
                pinned = set(here)
                yield here
                here, pinned = [], set()
        finally:  # nobody may read into places that are given away
            wait(reading)
            self._free += [place for _, place in reading.values()]

    def _room(self, layer: int, pinned: set[int]) -> int | None:
        """A place that nobody uses now."""
        if self._free:
            return self._free.pop()
        for key in self._places:
            if key[0] != layer or key[1] not in pinned:
                return self._places.pop(key)
        return None

    def _arrived(self, layer: int, reading: dict[Future[int], tuple[int, int]]) -> list[int]:
        began = time.perf_counter()
        done, _ = wait(reading, return_when=FIRST_COMPLETED)
        self.stats.waited += time.perf_counter() - began
        found = []
        for future in done:
            self.stats.nbytes += future.result()
            expert, place = reading.pop(future)
            self._places[layer, expert] = place
            found.append(expert)
        return sorted(found)

    def _read(self, layer: int, expert: int, place: int) -> int:
        for part in PARTS:
            into = memoryview(self._buffers[place][part].numpy())
            self.file.read(layer, part, expert, into)
        return sum(self.file.regions[layer, part].nbytes for part in PARTS)

    def _network(self, layer: int, place: int) -> tuple[PackedWeight, PackedWeight, PackedWeight]:
        gate, up, down = (self._weight(layer, place, part) for part in PARTS)
        return gate, up, down

    def _weight(self, layer: int, place: int, part: str) -> PackedWeight:
        form = self.file.regions[layer, part].form
        key = place, part, repr(form)
        if key not in self._weights:
            self._weights[key] = weight_in(self._buffers[place][part], form, coded_inputs=self._coded_inputs)
        return self._weights[key]


def _place_sizes(regions: Mapping[tuple[int, str], Region]) -> dict[str, int]:
    """Bytes of memory for each part of an expert, of whichever layer."""
    return {part: max(region.nbytes for (_, of), region in regions.items() if of == part) for part in PARTS}


def _check_budget(budget: int, place: int) -> None:
    if budget < 2 * place:
        raise ConfigError(f"expert_budget is {budget} bytes; two experts of this model take {2 * place}, the least")


def _aligned(places: int, size: int) -> torch.Tensor:
    """uint8 (places, size) that begins where direct reads may go to."""
    memory = large_empty(places * size + ALIGNMENT, dtype=torch.uint8)
    begin = -memory.data_ptr() % ALIGNMENT
    return memory[begin : begin + places * size].view(places, size)


class StreamedExperts:
    """The experts of one layer, as `Compute.experts` takes them."""

    def __init__(self, cache: ExpertCache, layer: int, hidden_size: int) -> None:
        self._cache, self._layer = cache, layer
        self.networks = Experts.vacant(cache.file.num_experts, hidden_size)

    def waves(self, ids: torch.Tensor) -> Iterator[list[int]]:
        """See `ExpertCache.waves`. ids: of all rows, any shape."""
        return self._cache.waves(self._layer, torch.unique(ids).tolist(), self.networks)


def check_listing(file: ExpertFile, sources: Sequence[Source]) -> None:
    """Raises CorruptFileError unless the file holds just the experts that the sources name, in their shapes."""
    where = str(listing(file.path))
    matrices = [(s.expert, s.shape[-2:]) for s in sources if s.expert is not None]
    shapes = {(expert.layer, expert.part): shape for expert, shape in matrices}
    num_experts = 1 + max(expert.expert for expert, _ in matrices)
    if file.num_experts != num_experts:
        raise CorruptFileError(
            f"{where}: 'num_experts' is {file.num_experts}; it must be {num_experts}, as the model has them; {WAY_OUT}"
        )
    for said, keys in (
        ("hold no", shapes.keys() - file.regions.keys()),
        ("hold a", file.regions.keys() - shapes.keys()),
    ):
        for layer, part in sorted(keys):
            raise CorruptFileError(
                f"{where}: its 'regions' {said} {quoted(part)} of layer {layer}, in contrast to the model; {WAY_OUT}"
            )
    for key, region in file.regions.items():
        check_form(region, shapes[key], where)


class ExpertLoading:
    """How a model's experts get into their file: on the first load, while the checkpoint is read, and never again.

    A context manager: it ends when all was read, or nothing more will be.
    """

    def __init__(self, checkpoint: Checkpoint, compute: Compute, num_experts: int, budget: int) -> None:
        """budget: bytes of memory for experts. Raises ConfigError if the compute has no form that could be read from a
        file."""
        if not isinstance(compute, NativeCompute):
            raise ConfigError(f"expert_budget goes with the native kernels, not with {compute.name!r}")
        self._compute, self._budget = compute, budget
        # Every byte counts: a model that was fetched again, or mended, must not be computed with the experts of before.
        # Its file has the name of the old one, and takes its place.
        self._identity = content_digest(checkpoint)
        self._path = experts_dir() / f"{checkpoint.digest()[:16]}.experts"
        self._file = ExpertFile.find(self._path, self._identity)
        self._writer = None if self._file else ExpertWriter(self._path, num_experts, self._identity)
        if self._writer is not None:
            _log.info("writing the experts of %s to %s, once", checkpoint.path, self._path)

    def __enter__(self) -> ExpertLoading:
        return self

    def __exit__(self, *_: object) -> None:
        """What was not written to its end is removed."""
        if self._writer is not None:
            self._writer.abandon()

    def divert(self, sources: Sequence[Source]) -> list[Source]:
        """The sources, of which experts go into the file, or are left alone if they are there.

        Raises CorruptFileError for a file whose listing says something else than the model.
        """
        if self._file is not None:
            check_listing(self._file, sources)
        found = []
        for source in sources:
            if source.expert is None:
                found.append(source)
            elif self._writer is None:
                found.append(replace(source, read=False))
            else:
                found.append(replace(source, take=partial(self._write, source.expert)))
        return found

    def _write(self, expert: ExpertMatrix, weight: Any) -> None:
        packed = self._compute.prepare(weight)
        assert isinstance(packed, PackedWeight)
        assert self._writer is not None
        regions, known = self._writer.regions, len(self._writer.regions)
        self._writer.write(expert.layer, expert.part, expert.expert, form_of(packed), bytes_of(packed))
        if len(regions) > known and all((expert.layer, part) in regions for part in PARTS):
            _check_budget(self._budget, sum(_place_sizes(regions).values()))  # not after hours of writing

    def cache(self) -> ExpertCache:
        """Once all sources were read. Raises ConfigError for a budget that does not hold two experts."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._file = ExpertFile.find(self._path, self._identity)
        assert self._file is not None
        return ExpertCache(self._file, self._budget, coded_inputs=self._compute.coded_inputs)
