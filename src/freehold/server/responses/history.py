"""From the input items of a Responses request to the messages of a conversation.

Items are finer than messages: reasoning, text and calls that follow each other were one answer, and become one message
of the assistant again, so that the tokens that were sampled for it are recognised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic_core import PydanticCustomError

from freehold.core.errors import RequestError
from freehold.server.called_tools import CalledTools, no_call
from freehold.server.openai.wire_message import tool_name
from freehold.server.responses.freeform import freeform_arguments
from freehold.server.responses.wire_items import (
    CallOutputInput,
    CustomCallInput,
    FunctionCallInput,
    InputItem,
    InputMessage,
    ReasoningInput,
)
from freehold.server.visual_parts import placed_parts

Message = dict[str, Any]


def messages_of(instructions: str | None, items: Sequence[InputItem]) -> list[Message]:
    """The messages of a request, in the form of `Conversation.messages`.

    There is one system message at most: the instructions, then the texts of the system and developer messages that
    stand before everything else, with an empty line between them. Later ones become messages of the user, between tags
    that say whose they were, because chat templates take a system message in front only.

    Messages between a call and its output are moved behind the outputs, and outputs are put into the order of their
    calls, because templates tell them apart by order.

    Raises RequestError for an output without a call, for two outputs of one call, for two calls of one answer with the
    same id, and where there is no message at all.
    """
    first = next((n for n, item in enumerate(items) if not _is_system(item)), len(items))
    system = [instructions or "", *(str(item.content) for item in items[:first] if isinstance(item, InputMessage))]
    history = _History()
    for number, item in enumerate(items[first:], first):
        history.add(item, f"input[{number}]")
    messages = history.messages()
    if text := "\n\n".join(piece for piece in system if piece):
        messages.insert(0, {"role": "system", "content": text})
    if not messages:
        raise RequestError("input is empty, and there are no instructions", field="input")
    return messages


def _is_system(item: InputItem) -> bool:
    return isinstance(item, InputMessage) and item.role in ("system", "developer")


@dataclass(slots=True)
class _Answer:
    """An answer that is being put together from its items. last: the kind of the last one."""

    reasoning: str = ""
    content: str = ""
    called: CalledTools = field(default_factory=CalledTools)
    calls: dict[str, dict[str, Any]] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    behind: list[Message] = field(default_factory=list)
    last: Literal["reasoning", "text", "call"] | None = None

    def takes(self, item: InputItem) -> bool:
        """Whether `item` goes on with it: nothing has come between, and reasoning or a second text begins anew."""
        if self.outputs or self.behind:
            return False
        if isinstance(item, ReasoningInput):
            return self.last in (None, "reasoning")
        return not (isinstance(item, InputMessage) and self.last == "text")

    def messages(self) -> list[Message]:
        """The assistant's message, the outputs in the order of the calls, and what was said between them."""
        message: Message = {"role": "assistant", "content": self.content}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.calls:
            message["tool_calls"] = list(self.calls.values())
        outputs = [_tool_message(call_id, self.outputs[call_id]) for call_id in self.calls if call_id in self.outputs]
        return [message, *outputs, *self.behind]


class _History:
    """What was said so far, and the answer to which the next items may belong."""

    def __init__(self) -> None:
        self._said: list[Message | _Answer] = []
        self._answer: _Answer | None = None
        self._answer_of_call: dict[str, _Answer] = {}

    def messages(self) -> list[Message]:
        """All of it."""
        return [
            message for said in self._said for message in (said.messages() if isinstance(said, _Answer) else [said])
        ]

    def add(self, item: InputItem, where: str) -> None:
        """Takes in the next item; `where` it stands in the request."""
        if isinstance(item, CallOutputInput):
            self._output(item, where)
        elif isinstance(item, InputMessage) and item.role != "assistant":
            self._say(_user_message(item, where))
        else:
            if self._answer is None or not self._answer.takes(item):
                self._answer = _Answer()
                self._said.append(self._answer)
            self._go_on(self._answer, item, where)

    def _go_on(self, answer: _Answer, item: InputItem, where: str) -> None:
        if isinstance(item, ReasoningInput):
            answer.reasoning += item.text()
            answer.last = "reasoning"
        elif isinstance(item, InputMessage):
            answer.content += str(item.content)
            answer.last = "text"
        elif isinstance(item, (FunctionCallInput, CustomCallInput)):
            answer.called.call(item.call_id, f"{where}.call_id")
            answer.calls[item.call_id] = _call(item)
            answer.last = "call"
            self._answer_of_call[item.call_id] = answer

    def _output(self, item: CallOutputInput, where: str) -> None:
        """Puts an output behind its call, also where it comes late."""
        answer = self._answer_of_call.get(item.call_id)
        if answer is None:
            raise no_call(item.call_id, f"{where}.call_id")
        answer.called.result(item.call_id, f"{where}.call_id")
        answer.outputs[item.call_id] = placed_parts(item.output, f"{where}.output")

    def _say(self, message: Message) -> None:
        if self._answer is not None and self._answer.called.waits:
            self._answer.behind.append(message)
        else:
            self._answer = None
            self._said.append(message)


def _tool_message(call_id: str, output: Any) -> Message:
    return {"role": "tool", "tool_call_id": call_id, "content": output}


def _user_message(item: InputMessage, where: str) -> Message:
    if item.role == "user":
        return {"role": "user", "content": placed_parts(item.content, f"{where}.content")}
    return {"role": "user", "content": f"<{item.role}>\n{item.content}\n</{item.role}>"}


def _call(item: FunctionCallInput | CustomCallInput) -> dict[str, Any]:
    arguments = freeform_arguments(item.input) if isinstance(item, CustomCallInput) else item.arguments
    return {"id": item.call_id, "type": "function", "function": {"name": _name(item.name), "arguments": arguments}}


def _name(name: str) -> str:
    """A name as it may stand in any model's format. A model may have called a function by no proper name."""
    try:
        return tool_name(name)
    except PydanticCustomError:
        return "".join(c if c.isascii() and (c.isalnum() or c in "_-.") else "_" for c in name)[:64] or "unnamed"
