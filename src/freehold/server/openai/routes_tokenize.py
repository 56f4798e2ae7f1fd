"""POST /v1/tokenize and /v1/detokenize; and under the paths where vLLM has them, for clients such as lm-eval's."""

from __future__ import annotations

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request

from freehold.core.errors import RequestError
from freehold.server.json_body import decode_json
from freehold.server.openai.logprobs import token_text
from freehold.server.openai.wire_tokenize import (
    DetokenizeAnswer,
    DetokenizeRequest,
    TokenizeAnswer,
    TokenizeRequest,
    TokenizerInfo,
)
from freehold.server.service import Service
from freehold.server.wire import parse_request


def tokenize_routes(service: Service) -> APIRouter:
    """The routes of this file, serving `service`."""
    router = APIRouter()

    @router.post("/tokenize", responses=service.documented_answers(TokenizeAnswer))
    @router.post("/v1/tokenize", responses=service.documented_answers(TokenizeAnswer))
    async def tokenize(http: Request) -> TokenizeAnswer:
        body = await http.body()
        return await run_sync(_tokenize, service, http, body)

    @router.post("/detokenize", responses=service.documented_answers(DetokenizeAnswer))
    @router.post("/v1/detokenize", responses=service.documented_answers(DetokenizeAnswer))
    async def detokenize(http: Request) -> DetokenizeAnswer:
        body = await http.body()
        return await run_sync(_detokenize, service, body)

    @router.get("/tokenizer_info")
    async def tokenizer_info() -> TokenizerInfo:
        return TokenizerInfo(**service.backend.tokenizer_info())

    return router


def _tokenize(service: Service, http: Request, body: bytes) -> TokenizeAnswer:
    request = parse_request(TokenizeRequest, decode_json(body))
    if request.model is not None:
        service.check_model(request.model)
    backend = service.backend
    if request.prompt is not None:
        ids = service.encode(request.prompt, request)
    else:
        ids = list(service.chat_prompt(http, request.conversation()).ids)
    strings = [token_text(backend.token_bytes(i)) for i in ids] if request.return_token_strs else None
    return TokenizeAnswer(count=len(ids), max_model_len=backend.context_length, tokens=ids, token_strs=strings)


def _detokenize(service: Service, body: bytes) -> DetokenizeAnswer:
    request = parse_request(DetokenizeRequest, decode_json(body))
    if request.model is not None:
        service.check_model(request.model)
    spelled = [service.backend.token_bytes(token) for token in request.tokens]
    if b"" in spelled:
        at = spelled.index(b"")
        raise RequestError(f"tokens: {request.tokens[at]} is not in the vocabulary", field=f"tokens[{at}]")
    return DetokenizeAnswer(prompt=b"".join(spelled).decode(errors="replace"))
