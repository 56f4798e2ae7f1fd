"""What the APIs' members are, as far as they are known here; everything else in a body is named as unknown.

A body may ask an endpoint for more than an answer: to read a file that it keeps, to search the web, to keep the answer,
to pass the request on to others. What it can ask for so grows with the APIs. So what is known decides, not what is
feared: a member or an element that is on no list below is an "unknown-field", or a "file" where it is a part or an
item of a kind that nobody knows.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

_DATA = "*"
"""A value that the model or the client's programs read; what is written in it is looked at, its form is free."""

_PLAIN = ""
"""A text, number or truth value, or a list of them."""


def _members(plain: str, **others: str) -> dict[str, str]:
    return {**dict.fromkeys(plain.split(), _PLAIN), **others}


_BODY = _members(
    """model stream max_tokens max_completion_tokens max_output_tokens temperature top_p top_k min_p top_a n best_of
    seed stop stop_sequences presence_penalty frequency_penalty repetition_penalty logprobs top_logprobs echo suffix
    user safety_identifier prompt_cache_key prompt_cache_retention reasoning_effort verbosity service_tier inference_geo
    parallel_tool_calls truncation max_tool_calls modalities include store background instructions
    min_tokens ignore_eos stop_token_ids bad_words length_penalty use_beam_search skip_special_tokens
    spaces_between_special_tokens add_special_tokens add_generation_prompt continue_final_message
    include_stop_str_in_output guided_regex guided_choice guided_grammar regex ebnf separate_reasoning priority
    previous_response_id container conversation prompt_token_ids""",
    messages="message", input="item", system="content", prompt="item", tools="tool", functions="function",
    tool_choice=_DATA, function_call=_DATA, response_format=_DATA, text=_DATA, metadata=_DATA, logit_bias=_DATA,
    json_schema=_DATA, guided_json=_DATA, structured_outputs=_DATA, chat_template_kwargs=_DATA,
    stream_options="options", thinking="options", reasoning="options", output_config="options", audio="options",
    prediction="part", mcp_servers=_DATA, web_search_options=_DATA, plugins=_DATA, cache_control="options",
    context_management=_DATA,
)  # fmt: skip
_MESSAGE = _members(
    "role type id status phase name tool_call_id refusal reasoning reasoning_content prefix partial",
    content="content", tool_calls="call", function_call=_DATA, annotations=_DATA, cache_control="options",
    audio="options",
)  # fmt: skip
_TOOL = _members(
    "type name description strict defer_loading allowed_callers eager_input_streaming max_characters display_width_px "
    "display_height_px display_number display_width display_height environment enable_zoom",
    function="function", custom="function", parameters=_DATA, input_schema=_DATA, input_examples=_DATA, format=_DATA,
    cache_control="options", tools="tool",
)  # fmt: skip
_OBJECTS: Mapping[str, Mapping[str, str]] = {
    "function": _members("name description strict", parameters=_DATA, format=_DATA),
    "call": _members("id type index", function=_DATA, custom=_DATA),
    "options": _members(
        """include_usage include_obfuscation continuous_usage_stats type budget_tokens display effort summary
        generate_summary ttl voice id""",
        format=_DATA,
    ),
    "source": _members("type media_type data url title", content="content"),
}
_ID = "type id status call_id"
# Parts of messages and items of Responses, by their type: what may stand in them.
_PARTS: Mapping[str, Mapping[str, str]] = {
    **dict.fromkeys(
        ("text", "input_text", "output_text", "summary_text", "reasoning_text", "refusal", "content"),
        _members(
            "type text refusal", cache_control="options", citations=_DATA, annotations=_DATA, logprobs=_DATA,
            content="content",
        ),
    ),
    "message": _MESSAGE,
    "reasoning": _members(f"{_ID} encrypted_content", summary="content", content="content"),
    "thinking": _members("type thinking signature"),
    "redacted_thinking": _members("type data"),
    "tool_use": _members("type id name", input=_DATA, caller=_DATA, cache_control="options"),
    "server_tool_use": _members("type id name", input=_DATA, caller=_DATA, cache_control="options"),
    "tool_result": _members("type tool_use_id is_error", content="content", cache_control="options"),
    "tool_reference": _members("type tool_name", cache_control="options"),
    "search_result": _members("type source title", content="content", citations=_DATA, cache_control="options"),
    "document": _members("type title context", source="source", citations=_DATA, cache_control="options"),
    "web_search_result": _members("type url title page_age encrypted_content"),
    "web_search_tool_result": _members("type tool_use_id", content="part", caller=_DATA, cache_control="options"),
    "code_execution_result": _members("type stdout stderr return_code", content="content"),
    "function_call": _members(f"{_ID} name arguments namespace"),
    "function_call_output": _members(_ID, output="content"),
    "custom_tool_call": _members(f"{_ID} name input namespace"),
    "custom_tool_call_output": _members(_ID, output="content"),
    "local_shell_call": _members(_ID, action=_DATA),
    "local_shell_call_output": _members(f"{_ID} output"),
    "shell_call": _members(_ID, action=_DATA),
    "shell_call_output": _members(f"{_ID} max_output_length", output=_DATA),
    "apply_patch_call": _members(_ID, operation=_DATA),
    "apply_patch_call_output": _members(f"{_ID} output"),
    "web_search_call": _members(_ID, action=_DATA),
    "item_reference": _members("type id"),
}  # fmt: skip
_CLIENT_TOOL = re.compile(
    r"(?:bash|text_editor|computer|memory)_[0-9]{8}|computer|computer_use_preview|local_shell|apply_patch"
)
_HOSTED = ("mcp_servers", "web_search_options", "plugins")
_KEPT = ("store", "background")


KNOWN_NAMES = frozenset().union(_BODY, _MESSAGE, _TOOL, *_OBJECTS.values(), *_PARTS.values())
"""All members that are known somewhere."""


def kinds_of(body: Mapping[str, Any]) -> Counter[str]:
    """What a body asks for beside an answer, and what in it nobody knows, counted by kinds."""
    shape = _Shape()
    shape.read_body(body)
    return shape.kinds


class _Shape:
    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()

    def read_body(self, body: Mapping[str, Any]) -> None:
        for name, value in body.items():
            if value and name in ("system", "instructions"):
                self.kinds["system-prompt"] += 1
            if value and name in _HOSTED:
                self.kinds["hosted-tool"] += 1
            if value and name in _KEPT:
                self.kinds["stored"] += 1
            if name == "prompt" and isinstance(value, Mapping):
                self.kinds["reference"] += 1  # a prompt that the upstream keeps
            elif (name in ("prompt", "input") and _has_numbers(value)) or (value and name == "prompt_token_ids"):
                self.kinds["tokens"] += 1
            elif value is not None:
                self._read(value, _BODY.get(name))

    def _read(self, value: Any, rule: str | None) -> None:
        """A value where something is expected; None: a member that nobody knows."""
        if isinstance(value, list) and rule not in (_DATA, None):
            for item in value:
                self._read(item, rule)
        elif rule is None or (rule == _PLAIN and isinstance(value, Mapping)):
            self.kinds["unknown-field"] += 1
        elif rule == "tool" and not isinstance(value, Mapping):
            self.kinds["hosted-tool"] += 1
        elif isinstance(value, Mapping) and rule != _DATA:
            self._read_object(value, rule)

    def _read_object(self, value: Mapping[str, Any], rule: str) -> None:
        if rule == "tool":
            known: Mapping[str, str] | None = self._of_tool(value)
        elif rule == "message" and value.get("type") is None:
            known = self._of_message(value)
        elif rule in ("message", "item", "content", "part"):
            known = self._of_part(value)
        else:
            known = _OBJECTS[rule]
            self.kinds["reference"] += rule == "options" and bool(value.get("id"))
        if known is not None:
            for name, member in value.items():
                if member is not None:
                    self._read(member, known.get(name))

    def _of_tool(self, tool: Mapping[str, Any]) -> Mapping[str, str] | None:
        """A tool's members; None where the upstream itself would run it, and so tell others what is in the request."""
        kind = tool.get("type")
        if kind in (None, "function", "custom", "namespace"):
            return _TOOL
        local = tool.get("environment")
        if kind == "shell" and isinstance(local, Mapping) and local.get("type") == "local":
            return {**_TOOL, "environment": _DATA}
        if isinstance(kind, str) and _CLIENT_TOOL.fullmatch(kind):
            return _TOOL
        self.kinds["hosted-tool"] += 1
        return None

    def _of_message(self, value: Mapping[str, Any]) -> Mapping[str, str]:
        self.kinds["system-prompt"] += value.get("role") in ("system", "developer")
        return _MESSAGE

    def _of_part(self, part: Mapping[str, Any]) -> Mapping[str, str] | None:
        """The members of a part or item, None where no more is to be read of it."""
        kind = part.get("type")
        if kind is None and "role" in part:
            return self._of_message(part)
        if kind is None and isinstance(part.get("id"), str) and set(part) <= {"type", "id"}:
            kind = "item_reference"
        if kind is None and set(part) == {"text"}:
            kind = "text"
        name = kind.lower() if isinstance(kind, str) else ""
        if name == "message":
            return self._of_message(part)
        if name == "redacted_thinking":
            self.kinds["sealed"] += 1
        elif name == "item_reference":
            self.kinds["reference"] += 1
        elif "image" in name or "video" in name or name == "computer_call_output":
            self.kinds["image"] += 1
            return None
        elif name not in _PARTS or (name == "document" and not _is_text_document(part)):
            self.kinds["file"] += 1
            return None
        return _PARTS[name]


def _is_text_document(part: Mapping[str, Any]) -> bool:
    source = part.get("source")
    return isinstance(source, Mapping) and source.get("type") in ("text", "content")


def _has_numbers(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    return any(
        (isinstance(item, int) and not isinstance(item, bool)) or (isinstance(item, list) and _has_numbers(item))
        for item in value
    )
