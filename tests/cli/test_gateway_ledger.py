"""The gateway's decisions in the ledger: one record of each request, with its clause, its class and its price."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from starlette.responses import PlainTextResponse

from freehold.cli.gateway_ledger import GatewayRecorder
from freehold.cli.ledger import LedgerRecorder
from freehold.governance.cost.prices import shipped_table
from freehold.governance.cost.traffic import read_traffic
from freehold.governance.ledger.files import LedgerFiles
from freehold.governance.ledger.ledger import Ledger
from freehold.governance.ledger.verify import verify
from freehold.governance.signing import SigningKey
from support.gateway_rig import endpoints_toml, running_gateway, setup_of
from support.recording_upstream import RecordingUpstream
from support.served_app import served

POLICY = '@id("public") permit (principal, action, resource) when { context.data_class == "public" };'
FACTS = {"jurisdictions": ["US"], "data_countries": ["US"], "retention_days": 0, "training_use": "no"}
CHAT = "/v1/chat/completions"


def body(text: str = "hi", **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **fields}


def written(path: Path) -> list[dict[str, Any]]:
    """The records, in their order."""
    lines = [line for part in sorted(path.rglob("*")) if part.is_file() for line in part.read_bytes().splitlines()]
    found = [json.loads(line) for line in lines if line.startswith(b"{") and b'"seq":' in line]
    return sorted(found, key=lambda record: int(record["seq"]))


def test_each_request_is_recorded_with_its_decision(tmp_path: Path) -> None:
    upstream = RecordingUpstream("api", model="minimax-m3")
    place = tmp_path / "ledger"
    with served(upstream.app()) as url, Ledger(place, SigningKey.generate()) as ledger:
        entry = {"name": "api", "base_url": url, "api": ["openai", "anthropic"], "models": {"m": "real"},
                 "path": "vendor-api", "facts": FACTS, "answer_seconds": 1}  # fmt: skip
        recorder = GatewayRecorder(LedgerRecorder(ledger, shipped_table()))
        setup = setup_of(POLICY, endpoints_toml(tmp_path, entry))
        with running_gateway(setup, recorder=recorder, on_decision=recorder.take, settle=recorder.settle) as door:
            answers = [
                httpx.post(door.url + CHAT, json=body()),
                httpx.post(door.url + "/v1/messages", json=body(stream=True, max_tokens=5)),
                httpx.post(door.url + CHAT, json=body("4111 1111 1111 1111")),
                httpx.post(door.url + CHAT, json={**body(), "model": "other"}),
                httpx.post(door.url + CHAT, content=b"{", headers={"content-type": "application/json"}),
                httpx.post(door.url + CHAT, content=b"x", headers={"content-type": "text/plain"}),
            ]
            upstream.mode = "half"
            answers.append(httpx.post(door.url + CHAT, json=body(stream=True)))
        assert recorder._decisions == {}
    everything = written(place)
    decisions = [record for record in everything if record["kind"] == "decision"]
    records = [record for record in everything if record["kind"] == "request"]
    sent = [record for record in records if record["outcome"] != "refused"]
    assert [record["id"] for record in decisions] == [f"{record['id']}-decision" for record in sent]
    for decision, record in zip(decisions, sent, strict=True):
        assert decision["seq"] < record["seq"]
        names = ("clause", "policy", "endpoint", "data_class", "model_asked")
        assert [decision[name] for name in names] == [record[name] for name in names]
        assert not {"outcome", "usage", "price", "request_hash"} & set(decision)
    traffic = read_traffic(LedgerFiles(place), None)
    assert len(traffic.requests) == len(records) == len(answers)
    assert [record["outcome"] for record in records] == ["served", "served", *["refused"] * 4, "failed"]
    assert [record["id"] for record in records] == [answer.headers["x-request-id"] for answer in answers]
    assert [record.get("clause") for record in records] == [
        "public",
        "public",
        "no-permit",
        "none",
        "none",
        None,
        "public",
    ]
    first, streamed, refused, *_, broken = records
    assert (first["endpoint"], first["model_asked"], first["model"]) == ("api", "m", "minimax-m3")
    assert first["policy"] == answers[0].headers["x-freehold-policy"]
    # 8 tokens at 0.30, 4 cached ones at 0.06, 2 written at 1.20 US dollars a million.
    assert (first["price"]["basis"], Decimal(first["price"]["amount"])) == ("charged", Decimal("0.00000504"))
    assert streamed["usage"]["output_tokens"] == 7
    assert (refused["data_class"], refused["details"]["findings"]) == ("regulated", {"payment-card": 1})
    assert "usage" not in refused
    assert broken["usage"]["estimated"]
    # Two groups of the card: four digits alone also occur in hashes.
    kept = b"".join(part.read_bytes() for part in place.glob("**/*") if part.is_file())
    assert not re.search(rb"4111\D?1111", kept)
    assert verify(place).internally_consistent


def test_without_a_ledger_that_can_be_written_nothing_is_sent(tmp_path: Path) -> None:
    upstream = RecordingUpstream("api")
    with served(upstream.app()) as url:
        entry = {"name": "api", "base_url": url, "api": "openai", "models": ["m"], "path": "self-hosted"}
        ledger = Ledger(tmp_path / "ledger", SigningKey.generate())
        recorder = GatewayRecorder(LedgerRecorder(ledger, shipped_table()))
        with running_gateway(setup_of(POLICY, endpoints_toml(tmp_path, entry)), recorder=recorder) as door:
            ledger._failure = "the disk is full"
            answer = httpx.post(door.url + CHAT, json=body())
            ledger._failure = None
        ledger.close()
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "ledger_unavailable"
    assert upstream.arrivals == []


def test_a_decision_is_on_the_disk_before_its_request_is_sent(tmp_path: Path) -> None:
    place = tmp_path / "ledger"
    seen: list[list[str]] = []

    upstream = FastAPI()

    @upstream.post("/{path:path}")
    def answered() -> PlainTextResponse:
        seen.append([record["id"] for record in written(place)])
        return PlainTextResponse("no", 500)

    with served(upstream) as url, Ledger(place, SigningKey.generate()) as ledger:
        entry = {"name": "api", "base_url": url, "api": "openai", "models": ["m"], "path": "self-hosted"}
        recorder = GatewayRecorder(LedgerRecorder(ledger, shipped_table()))
        setup = setup_of(POLICY, endpoints_toml(tmp_path, entry))
        with running_gateway(setup, recorder=recorder, on_decision=recorder.take, settle=recorder.settle) as door:
            answer = httpx.post(door.url + CHAT, json=body())
    assert seen == [[f"{answer.headers['x-request-id']}-decision"]]


def test_a_decision_that_cannot_be_kept_is_not_carried_out(tmp_path: Path) -> None:
    upstream = RecordingUpstream("api")

    async def full(_record: Any) -> None:
        raise OSError("no space left")

    with served(upstream.app()) as url:
        entry = {"name": "api", "base_url": url, "api": "openai", "models": ["m"], "path": "self-hosted"}
        with running_gateway(setup_of(POLICY, endpoints_toml(tmp_path, entry)), settle=full) as door:
            answer = httpx.post(door.url + CHAT, json=body())
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_recorded")
    assert upstream.arrivals == []
