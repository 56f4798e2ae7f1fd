"""From a conversation to the prompt that a model was trained on: chat templates, rendered in a sandbox."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from importlib.resources import files
from typing import Any

from jinja2 import Template, meta

from freehold.core.errors import TemplateError
from freehold.model.answers.format import AnswerFormat
from freehold.model.answers.json_calls import THINK_CLOSE, THINK_OPEN
from freehold.model.answers.parser import AnswerParser
from freehold.model.chat_limits import Limits, measure
from freehold.model.chat_messages import join_text_parts, plain, plain_messages, split_into_parts
from freehold.model.chat_sandbox import TemplateEnvironment, run_bounded
from freehold.model.tokenizer import Tokenizer

# Freehold's own templates, for checkpoints that come without: model_type or GGUF architecture -> file.
_BUILT_IN = {
    "minimax-m3": "minimax_m3",
    "minimax_m3": "minimax_m3",
    "minimax_m3_vl": "minimax_m3",
    "minimax_m3_vl_text": "minimax_m3",
}
# What tells the template of SmolLM2 checkpoints, which has no place for the tools that the model was trained to call.
_SMOLLM2 = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
_OWN_VARIABLES = frozenset({"messages", "tools", "add_generation_prompt", "bos_token", "eos_token"})
_MAX_TEMPLATE_LEN = 1_000_000
_PROBE = "frhld"
_ANY_SIZE = 1 << 62


def built_in_template(model_type: str) -> str | None:
    """Freehold's own template for a model_type, or None if it has none."""
    name = _BUILT_IN.get(model_type)
    if name is None:
        return None
    return _template_file(name)


def _template_file(name: str) -> str:
    return (files("freehold.model") / "templates" / f"{name}.jinja").read_text(encoding="utf-8")


def _with_tools(template: str) -> str:
    """The template itself, or Freehold's own that writes the same and knows tools besides."""
    is_plain_smollm2 = _SMOLLM2 in template and "tools" not in template and "<|im_start|>" in template
    return _template_file("smollm2_tools") if is_plain_smollm2 else template


class ChatFormat:
    """A chat template with its tokens. Immutable, and safe to use from several threads.

    template: Jinja source, or None for a base model; then only `render` fails, not the construction.
    bos_token, eos_token: texts that the template may write.
    max_seconds: CPU seconds that one render may take.
    now: the clock behind a template's `strftime_now`.

    What untrusted templates can and cannot do is written in `freehold.model.chat_sandbox`.
    """

    def __init__(
        self,
        template: str | None,
        *,
        bos_token: str = "",
        eos_token: str = "",
        max_seconds: float = 10.0,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self.template = template
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._max_seconds = max_seconds
        self._now = now

    @classmethod
    def from_tokenizer(cls, tokenizer: Tokenizer, *, model_type: str | None = None) -> ChatFormat:
        """A model's chat format: the template beside its vocabulary, else Freehold's own for `model_type`.

        For SmolLM2's template, which knows no tools, stands one that writes the same without tools.
        """
        template = tokenizer.chat_template
        if template is not None:
            template = _with_tools(template)
        if template is None and model_type is not None:
            template = built_in_template(model_type)
        return cls(template, bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token)

    @property
    def available(self) -> bool:
        """Whether there is a template at all."""
        return self.template is not None

    @property
    def variables(self) -> frozenset[str]:
        """Every variable that the template reads; raises TemplateError as `render` does."""
        return self._compiled[1]

    @property
    def takes_tools(self) -> bool:
        """Whether the template can declare tools."""
        return "tools" in self.variables

    @cached_property
    def answer_format(self) -> AnswerFormat:
        """How the model writes its answers: whether with reasoning, whether with tool calls."""
        return AnswerFormat.of_template(self.template)

    def answer_parser(
        self,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking_mode: str | None = None,
        calls: bool = True,
        **template_kwargs: Any,
    ) -> AnswerParser:
        """A parser for one answer to a prompt that was rendered with the same arguments.

        calls: False: none are wanted, and what looks like one is text.
        Where an answer begins follows from thinking_mode, or, for a template that opens or closes `<think>` in its
        generation prompt, from what it writes there.
        Raises ArgumentError for a thinking_mode that the model does not have, TemplateError as `render` does.
        """
        chosen = self.answer_format
        if thinking_mode is None and chosen.name == "json_calls" and chosen.has_reasoning:
            thinking_mode = self.opened_mode(tools, template_kwargs)
        return chosen.parser(tools=tools, thinking_mode=thinking_mode, calls=calls)

    def opened_mode(self, tools: Sequence[Mapping[str, Any]] | None, template_kwargs: Mapping[str, Any]) -> str:
        """The thinking mode that the end of a prompt stands for."""
        end = self.render([{"role": "user", "content": _PROBE}], tools=tools, **template_kwargs).rstrip()
        if end.endswith(THINK_OPEN):
            return "enabled"
        return "disabled" if end.endswith(THINK_CLOSE) else "adaptive"

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **template_kwargs: Any,
    ) -> str:
        """The prompt for `messages`, to be encoded with `allow_special=True` and without a further BOS.

        messages: objects as the OpenAI API has them; content is a text, a list of parts, or None. They are
            not changed. Text parts are joined by line ends if the template knows no lists.
        tools: tool declarations as the OpenAI API has them; None or empty: no tools.
        add_generation_prompt: end with the opening of the assistant's turn.
        template_kwargs: further variables of the template, such as `thinking_mode`.
        Raises TemplateError if there is no template; if the template refuses the messages (with its own
        words), fails, or breaks a limit; for tools or variables that it does not read; for content it cannot
        take.
        """
        template, variables = self._compiled
        self._check_names(variables, tools, template_kwargs)
        copies = plain_messages(messages)
        if self._knows_lists is False:
            join_text_parts(copies)
        elif self._knows_texts is False:
            split_into_parts(copies)
        context = {
            "messages": copies,
            "tools": plain(tools, "tools") if tools else None,
            "add_generation_prompt": add_generation_prompt,
            **plain(template_kwargs, "template_kwargs"),
        }
        return self._run(template, context)

    def _run(self, template: Template, context: dict[str, Any]) -> str:
        context = {**context, **self._tokens}
        size = len(self.template or "") + measure(context, _ANY_SIZE)
        return run_bounded(lambda: template.render(context), Limits.for_input(size, seconds=self._max_seconds))

    def _check_names(
        self, variables: frozenset[str], tools: Sequence[Any] | None, template_kwargs: Mapping[str, Any]
    ) -> None:
        if tools and "tools" not in variables:
            raise TemplateError("this model's chat template has no place for tools; send the request without tools")
        for name in template_kwargs:
            if name in _OWN_VARIABLES or name not in variables:
                known = ", ".join(sorted(variables - _OWN_VARIABLES)) or "none"
                raise TemplateError(f"this model's chat template has no option {name!r}; its options are: {known}")

    @cached_property
    def _compiled(self) -> tuple[Template, frozenset[str]]:
        source = self.template
        if source is None:
            raise TemplateError(
                "this is a base model without a chat template, so chat is impossible with it; use completions"
            )
        if len(source) > _MAX_TEMPLATE_LEN:
            raise TemplateError(
                f"the chat template has {len(source)} characters; more than {_MAX_TEMPLATE_LEN} are refused"
            )
        environment = TemplateEnvironment(self._now)
        found: list[tuple[Template, frozenset[str]]] = []

        def compile_template() -> str:
            tree = environment.parse_bounded(source)
            names = meta.find_undeclared_variables(tree) - set(environment.globals)
            found.append((environment.from_string(tree), frozenset(names)))
            return ""

        run_bounded(compile_template, Limits.for_input(len(source), seconds=self._max_seconds))
        return found[0]

    # Whether a template takes a list of parts, or a text, as content is found by trying: it must print the
    # text, and not the list itself.

    @cached_property
    def _knows_lists(self) -> bool:
        printed = self._probe([{"type": "text", "text": _PROBE}])
        return _PROBE in printed and "'text'" not in printed and '"text"' not in printed

    @cached_property
    def _knows_texts(self) -> bool:
        return _PROBE in self._probe(_PROBE)

    def _probe(self, content: Any) -> str:
        context = {
            "messages": [{"role": "user", "content": content}],
            "tools": None,
            "add_generation_prompt": False,
        }
        try:
            return self._run(self._compiled[0], context)
        except TemplateError:
            return ""
