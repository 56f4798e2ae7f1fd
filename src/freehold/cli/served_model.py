"""A loaded model as the server sees it: `LLM` for its words, `EngineDriver` for its answers."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from freehold.core.errors import TokenizerError
from freehold.engine.chat import Chat, prepare_chat
from freehold.engine.driver import EngineDriver, RequestStream

if TYPE_CHECKING:
    from freehold.core.clients import Client
    from freehold.core.conversation import Conversation
    from freehold.core.sampling import SamplingParams
    from freehold.core.visuals import Placed
    from freehold.engine.llm import LLM


class ServedModel:
    """A `freehold.server.backend.Backend`. Entering it starts the engine, leaving it ends all requests."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._driver = EngineDriver(llm.engine)
        self.created = int(llm.path.stat().st_mtime)

    def __enter__(self) -> ServedModel:
        self._driver.start()
        return self

    def warm(self) -> None:
        """Makes what the first grammar of a process needs, in a thread of its own; returns at once. A request that
        needs it before waits for it, no longer than it would without."""
        threading.Thread(target=self._llm.engine.grammars.warm, name="freehold-warm", daemon=True).start()

    def __exit__(self, *exception: object) -> None:
        self._driver.stop()

    @property
    def model_name(self) -> str:
        """The name clients ask for."""
        return self._llm.name

    @property
    def sampling_defaults(self) -> Mapping[str, float | int]:
        """Sampling fields for requests that leave them out."""
        return self._llm.sampling_defaults

    @property
    def context_length(self) -> int:
        """Most tokens of one request, prompt and answer."""
        return self._llm.context_length

    @property
    def input_modalities(self) -> Sequence[str]:
        """What prompts may hold."""
        return ("text",) if self._llm.visual_chat is None else ("text", "image", "video")

    def encode(self, text: str, *, special: bool, add_bos: bool | None) -> list[int]:
        """Token ids of a plain prompt; see `freehold.server.backend.Backend`."""
        return self._llm.tokenizer.encode(text, allow_special=special, add_bos=add_bos)

    def tokenizer_info(self) -> dict[str, str | None]:
        """The texts of its BOS and EOS tokens, and its chat template."""
        tokenizer = self._llm.tokenizer
        return {
            "bos_token": tokenizer.bos_token or None,
            "eos_token": tokenizer.eos_token or None,
            "chat_template": self._llm.chat_format.template,
        }

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of a token; none for an id that the vocabulary does not have."""
        try:
            return self._llm.tokenizer.token_bytes(token_id)
        except TokenizerError:
            return b""

    def prepare_chat(self, conversation: Conversation, *, client: str) -> Chat:
        """The prompt of a conversation, and what its answers must be. Raises as `freehold.engine.chat` does."""
        return prepare_chat(self._llm, conversation, scope=client)

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        client: Client,
        priority: int,
        provenance: bool = False,
        visuals: Sequence[Placed] = (),
    ) -> RequestStream:
        """Queue a request on the running event loop. Raises RequestError or a subclass."""
        return self._driver.submit(
            prompt_ids, params, client=client, priority=priority, provenance=provenance, visuals=visuals
        )

    def stats(self) -> dict[str, float | int | str]:
        """Requests by state, and the block cache's counts."""
        engine = self._llm.engine
        cache = engine.cache.stats()
        return {
            "requests_running": len(engine.scheduler.running),
            "requests_waiting": len(engine.scheduler.waiting),
            "cache_blocks": cache.num_blocks,
            "cache_blocks_free": cache.num_free,
            "cache_blocks_kept": cache.num_kept,
            "block_tokens": cache.block_tokens,
            "prompt_tokens_cached": cache.hit_tokens,
            "prompt_tokens_cached_ram": cache.hit_tokens - cache.restored_tokens,
            "prompt_tokens_cached_disk": cache.restored_tokens,
            "tokens_computed": cache.computed_tokens,
            "cache_audits": self._driver.num_audits,
            "cache_audits_failed": self._driver.num_failed_audits,
            **self._store_stats(),
        }

    def _store_stats(self) -> dict[str, float | int | str]:
        """Of the block store and of the memory of answers; without a store, of the latter alone."""
        replies, disk = self._llm.replies.stats(), self._llm.engine.cache.pool.disk
        known: dict[str, float | int | str] = {"answers_recognised": replies.recalled}
        if disk is None:
            return known
        store = disk.store.stats()
        return known | {
            "store_blocks": store.num_blocks,
            "store_bytes": store.nbytes,
            "store_damage_events": store.num_damaged,
            "store_bytes_read": disk.read_bytes,
            "store_bytes_written": disk.written_bytes,
        }
