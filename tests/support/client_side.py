"""What tests of clients know of a server: its address, its counters, the requests that it answered."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from support.scripted_answers import ScriptedTalk
from support.scripted_serve import read_journal, scripted_server
from support.small_m3 import SMALL_M3

_SAMPLE = re.compile(r"^freehold_tokens_computed_total(?:\{\})? (\S+)$", re.M)


@dataclass(frozen=True, slots=True)
class Served:
    """A server of `support.scripted_serve`. url: without a path. block_tokens: of its cache."""

    url: str
    model: str
    block_tokens: int
    journal: Path

    @property
    def openai(self) -> str:
        """The base URL of clients that speak OpenAI's APIs."""
        return f"{self.url}/v1"

    def tokens_computed(self) -> int:
        """Tokens that went through the model since the server started, by its metrics."""
        found = _SAMPLE.search(httpx.get(f"{self.url}/metrics").text)
        assert found, "the metrics have no count of computed tokens"
        return int(float(found.group(1)))

    def answered(self, marker: str | None = None) -> list[dict[str, Any]]:
        """The requests that have ended, those of one conversation or all."""
        entries = read_journal(self.journal)
        return entries if marker is None else [entry for entry in entries if entry["marker"] == marker]

    def check_prefixes(self, marker: str) -> None:
        """Every request of a conversation but its first found all that was computed for the one before, and its answer
        as well: nothing was read twice."""
        entries = self.answered(marker)
        assert len(entries) > 1, f"the conversation {marker!r} had {len(entries)} requests"
        for before, entry in itertools.pairwise(entries):
            # The last token of an answer was sampled and never read.
            known = before["prompt_tokens"] + before["completion_tokens"] - 1
            assert entry["cached_tokens"] >= known, f"turn {entry['turn']}: {entry}, where {known} were known"


@contextmanager
def serving_script(
    script: Sequence[ScriptedTalk], model: Path, folder: Path, *options: str, cache_tokens: int = 1 << 16
) -> Iterator[Served]:
    """A server that follows a script. model: from `write_small_m3`; folder: for its files."""
    with scripted_server(script, model, folder, *options, "--cache-tokens", str(cache_tokens)) as (server, journal):
        yield Served(server.base_url.removesuffix("/v1"), SMALL_M3.name, SMALL_M3.block_tokens, journal)
