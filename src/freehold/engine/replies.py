"""A memory of answers, so that they are recognised when a client sends them back; see `freehold.model.chat_replay`."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from freehold.core.errors import ArgumentError
from freehold.engine.reply_disk import ReplyDisk
from freehold.engine.reply_file import REPLIES_NAME, StoredReply
from freehold.model.chat_replay import Reply

_LEAST_DISK_BYTES = 1 << 20
_MARK_SECONDS = 3600.0  # between two marks that an answer is used


@dataclass(frozen=True, slots=True)
class ReplyStats:
    """Counts since the start.

    num_replies, nbytes: answers in RAM now. recalled, unknown: look-ups. written: answers on the disk; given_up: those
    that should be there and are not. on_disk: whether the file can be used now.
    """

    num_replies: int = 0
    nbytes: int = 0
    recalled: int = 0
    unknown: int = 0
    written: int = 0
    given_up: int = 0
    on_disk: bool = False


class Replies:
    """A `freehold.model.chat_replay.ReplyMemory`. Safe to use from several threads.

    identity: whatever makes two models' answers different: weights, template. Answers of another are never found.
    directory: where a file keeps them over restarts, also for several processes; None: RAM alone.
    ram_bytes, disk_bytes: limits; what was used least recently goes first.

    A file that is damaged, locked or cannot be written is reported in the log `freehold.engine`, once, and costs
    nothing but recognition. A damaged one is set aside and begun anew.
    """

    def __init__(
        self, identity: str, *, directory: Path | None = None, ram_bytes: int = 64 << 20, disk_bytes: int = 1 << 30
    ) -> None:
        if ram_bytes < 0:
            raise ArgumentError(f"ram_bytes is {ram_bytes}; it must be 0 or more")
        if disk_bytes < _LEAST_DISK_BYTES:
            raise ArgumentError(f"disk_bytes is {disk_bytes}; it must be at least {_LEAST_DISK_BYTES}")
        self._identity = hashlib.blake2b(identity.encode(), digest_size=32).digest()
        self._ram_bytes = ram_bytes
        self._kept: OrderedDict[bytes, dict[bytes, StoredReply]] = OrderedDict()
        self._marked: dict[bytes, float] = {}
        self._stats = ReplyStats()
        self._lock = threading.Lock()
        self._disk = None if directory is None else ReplyDisk(directory / REPLIES_NAME, disk_bytes)

    def remember(self, key: bytes, reply: Reply, reasoning: str) -> None:
        """Keeps an answer; one with the same key and reasoning is replaced. The disk is written later."""
        stored = StoredReply(self._own(key), _digest(reasoning), reply, time.time_ns())
        with self._lock:
            self._marked[stored.key] = time.monotonic()
            self._keep(stored)
        if self._disk is not None:
            self._disk.put(stored)

    def recall(self, key: bytes, reasoning: str | None) -> Reply | None:
        """The answer with this reasoning, or with None the latest with any; None if there is none."""
        own, digest = self._own(key), None if reasoning is None else _digest(reasoning)
        with self._lock:
            found = _choose(self._kept.get(own, {}).values(), digest)
            if found is not None:
                self._kept.move_to_end(own)
        if found is None and self._disk is not None:
            found = _choose(self._disk.find(own), digest)
            if found is not None:
                with self._lock:
                    self._keep(found)
        with self._lock:
            if found is None:
                self._stats = replace(self._stats, unknown=self._stats.unknown + 1)
                return None
            self._stats = replace(self._stats, recalled=self._stats.recalled + 1)
            is_due = self._is_mark_due(own)
        if is_due and self._disk is not None:
            self._disk.mark(own)
        return found.reply

    def stats(self) -> ReplyStats:
        """What is kept and how it served."""
        with self._lock:
            stats = replace(self._stats, num_replies=sum(map(len, self._kept.values())))
        disk = self._disk
        if disk is None:
            return stats
        return replace(stats, written=disk.written, given_up=disk.given_up, on_disk=disk.is_ready)

    def flush(self) -> None:
        """Waits until everything kept so far is on the disk, or given up."""
        if self._disk is not None:
            self._disk.flush()

    def close(self) -> None:
        """Writes what is left and closes the file; from now on answers are kept in RAM alone. May be called again."""
        if self._disk is not None:
            self._disk.stop()

    def __enter__(self) -> Replies:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _own(self, key: bytes) -> bytes:
        return hashlib.blake2b(key, digest_size=32, key=self._identity).digest()

    def _keep(self, stored: StoredReply) -> None:
        variants = self._kept.setdefault(stored.key, {})
        self._kept.move_to_end(stored.key)
        replaced = variants.pop(stored.reasoning, None)
        variants[stored.reasoning] = stored
        nbytes = self._stats.nbytes + stored.nbytes - (0 if replaced is None else replaced.nbytes)
        while nbytes > self._ram_bytes and self._kept:
            key, oldest = self._kept.popitem(last=False)
            self._marked.pop(key, None)
            nbytes -= sum(stored.nbytes for stored in oldest.values())
        self._stats = replace(self._stats, nbytes=nbytes)

    def _is_mark_due(self, key: bytes) -> bool:
        now = time.monotonic()
        if now - self._marked.get(key, -_MARK_SECONDS) < _MARK_SECONDS or key not in self._kept:
            return False
        self._marked[key] = now
        return True


def _choose(variants: Iterable[StoredReply], reasoning: bytes | None) -> StoredReply | None:
    """Of answers with one key the one with a reasoning, or the latest."""
    fitting = [stored for stored in variants if reasoning is None or stored.reasoning == reasoning]
    return max(fitting, key=lambda stored: stored.made, default=None)


def _digest(reasoning: str) -> bytes:
    return hashlib.blake2b(reasoning.encode("utf-8", "surrogatepass"), digest_size=16).digest()
