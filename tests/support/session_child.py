"""A process that forks others which hold sessions over a block store, for tests that kill them at any moment.

Each line on stdin, `STORE_DIR SESSIONS TURNS`, starts one. It prints `pid N`; when it has ended, `ended` and its status
follow. Forking spares each its imports. In between it prints a line for every sampled token: session, number of tokens
before it, the token, a digest of its logits; and a line "prompt" for each request: session, tokens of its prompt, how
many of them were found.
"""

from __future__ import annotations

import hashlib
import os
import sys
import traceback

from freehold.core.events import FinishEvent, TokenEvent
from freehold.core.sampling import SamplingParams
from support.tiny_engine import random_tokens, tiny_engine, tiny_model

NEW_TOKENS, ANSWER_TOKENS = 75, 9


def say(*words: object) -> None:
    """A line on stdout, whole or not at all, whenever the process is killed: `print` may need several writes."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def hold_sessions(store_dir: str, sessions: int, turns: int) -> None:
    """Several sessions at once; each turn sends the whole history and some new tokens."""
    engine = tiny_engine(tiny_model("m3"), store_dir=store_dir, prefill_chunk=64, cache_tokens=16384)
    original = engine._advance

    def watched(request, logits):  # type: ignore[no-untyped-def]
        digest = hashlib.sha256(logits.tobytes()).hexdigest()[:16]
        events = original(request, logits)
        token = next(e.token_id for e in events if isinstance(e, TokenEvent))
        say(request.client, len(request.tokens) - 1, token, digest)
        return events

    engine._advance = watched  # type: ignore[method-assign]
    histories = [random_tokens(50, seed=s) for s in range(sessions)]
    params = SamplingParams(max_tokens=ANSWER_TOKENS, temperature=0.7, seed=11, ignore_eos=True)
    turn_of = [0] * sessions
    running: dict[str, int] = {}

    def send(session: int) -> None:
        histories[session] += random_tokens(NEW_TOKENS, seed=1000 * session + turn_of[session])
        running[engine.submit(histories[session], params, client=str(session))] = session

    for session in range(sessions):
        send(session)
    while engine.busy:
        for event in engine.step():
            session = running[event.request_id]
            if isinstance(event, TokenEvent):
                histories[session].append(event.token_id)
            if isinstance(event, FinishEvent):
                assert event.error is None, event.error
                say("prompt", session, event.usage.prompt_tokens, event.usage.cached_tokens)
                turn_of[session] += 1
                if turn_of[session] < turns:
                    send(session)
    engine.cache.check_integrity()
    engine.close()
    say("done")


def main() -> None:
    """One process after another."""
    for line in sys.stdin:
        store_dir, sessions, turns = line.rsplit(" ", 2)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                say("pid", os.getpid())
                hold_sessions(store_dir, int(sessions), int(turns))
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        say("ended", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


if __name__ == "__main__":
    main()
