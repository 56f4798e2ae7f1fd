"""The guard that has each request recorded: no answer is whole before its record is."""

from __future__ import annotations

import asyncio
import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from freehold.core.errors import FreeholdError
from freehold.server.operation.observation import Observation
from freehold.server.operation.operation import Operation
from freehold.server.operation.principal import principal_of
from freehold.server.operation.recorder import Draft, Ending, Recorder, RequestEnd
from freehold.server.refusals import Refuse, refuse, route_path

logger = logging.getLogger("freehold.server")

CODE = "ledger_unavailable"
_CLIENT_GONE = 499


class RecordGuard:
    """Stands inside WatchGuard and around all that refuses, so that refusals are recorded too.

    Work for a key (POST, PUT and PATCH) gets a record before the last message of its answer goes out: an answer in one
    piece is held back until then and replaced by a 503 where the record cannot be written; a stream then lacks its end.
    While nothing can be written, new work is refused with 503.

    Requests without a valid key leave no record: strangers could fill the disk with them. /metrics counts them.
    """

    def __init__(self, app: ASGIApp, operation: Operation, refuse: Refuse = refuse) -> None:
        self._app = app
        self._recorder = operation.recorder
        self._metrics = operation.metrics
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._recorder is None or scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH"):
            await self._app(scope, receive, send)
            return
        recorded = _Recorded(self._app, self._recorder, self._refuse, scope, receive, send)
        try:
            await recorded.run()
        finally:
            if recorded.unwritable is not None:
                self._metrics.observe_refusal("", "ledger")


class _Recorded:
    """One request. unwritable: why it has no record.

    _held: the start of the answer, until it is known whether a record can be had.
    """

    def __init__(
        self, app: ASGIApp, recorder: Recorder, refuse: Refuse, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._app, self._refuse = app, refuse
        self._scope, self._receive, self._send = scope, receive, send
        self._held: Message | None = None
        self._status = _CLIENT_GONE
        self._gone = False
        self._recorded = False
        self.unwritable: FreeholdError | None = None
        self._draft: Draft | None = None
        try:
            self._draft = recorder.begin()
        except FreeholdError as error:
            self.unwritable = error

    async def run(self) -> None:
        """Let the request through, and see to its record however it ends."""
        ending: Ending = "failed"
        try:
            if self.unwritable is not None:
                await self._refuse_record(self.unwritable)
            else:
                await self._app(self._scope, self._hear, self._tell)
            ending = "disconnected"
        except asyncio.CancelledError:
            ending = "aborted"
            raise
        finally:
            if not self._recorded and self.unwritable is None:
                # Nothing was sent to the end: the client left, or something broke. There is nobody to be told.
                self._status = 500 if ending == "failed" else _CLIENT_GONE
                try:
                    await self._record(ending)
                except FreeholdError as error:
                    logger.error("request %s has no record: %s", self._scope["state"]["http_request_id"], error)

    async def _hear(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._gone = True
        elif self._draft is not None:
            self._draft.hear_request(message.get("body", b""))
        return message

    async def _tell(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status, self._held = message["status"], message
            return
        if self._draft is not None:
            self._draft.hear_answer(message.get("body", b""))
        if not message.get("more_body", False) and not self._recorded:
            try:
                await self._record(self._ending())
            except FreeholdError as error:
                await self._refuse_record(error)
                return
        await self._release()
        await self._send(message)

    async def _release(self) -> None:
        if self._held is not None:
            held, self._held = self._held, None
            await self._send(held)

    async def _refuse_record(self, error: FreeholdError) -> None:
        """Nothing was sent yet: say why. In the middle of a stream: let it end without its end."""
        self.unwritable = error
        logger.error("request %s has no record: %s", self._scope["state"]["http_request_id"], error)
        if self._held is None and self._status != _CLIENT_GONE:
            raise error
        message = "this server records every request and cannot write its ledger now; nothing is answered without"
        headers = {"Retry-After": "10"}
        await self._refuse(self._scope, 503, message, CODE, headers)(self._scope, self._receive, self._send)

    def _ending(self) -> Ending:
        reason = self._observation.finish_reason
        if reason is None:
            return "refused" if self._status < 500 or self._status == 503 else "failed"
        reasons = set(reason.split(","))
        if reasons <= {"stop", "length"}:
            return "served"
        if self._gone:
            return "disconnected"
        # A stream that never came to any end of its own, with its client still there, is a fault of ours.
        return "failed" if "error" in reasons or reasons <= {"stop", "length", "aborted"} else "aborted"

    @property
    def _observation(self) -> Observation:
        found = self._scope["state"]["observation"]
        assert isinstance(found, Observation)
        return found

    async def _record(self, ending: Ending) -> None:
        self._recorded = True
        principal = principal_of(self._scope)
        if self._draft is None or principal is None:
            return
        seen = self._observation
        reason = seen.finish_reason
        # Routes that only count or look at a text are answered without the engine.
        if reason is None and ending == "refused" and self._status < 400:
            ending = "served"
        end = RequestEnd(
            request_id=self._scope["state"]["http_request_id"],
            key_id=principal.key_id,
            route=route_path(self._scope),
            ending=ending,
            status=self._status,
            reason=reason,
            seconds=round(seen.seconds, 3),
            model_asked=seen.model_asked,
            model=seen.model,
            had_tokens=reason is not None,
            prompt_tokens=seen.prompt_tokens,
            cached_tokens=seen.cached_tokens,
            completion_tokens=seen.completion_tokens,
            whole=reason is not None and set(reason.split(",")) <= {"stop", "length"},
        )
        await self._draft.finish(end)
