"""Rendering chat templates that come with a model and cannot be trusted.

What is guaranteed, for any template and any messages:

- No Python object is reachable: templates see texts, numbers, lists and dictionaries, never attributes that
  begin with an underscore, no files, no imports, no included templates, and only the filters and text methods
  of the lists in `chat_functions` and below.
- Nothing that was handed in is changed.
- No value grows past `Limits.value_size` (characters and elements, counted through nested containers), and
  the sum of all that is built stays under `Limits.total_size`. Operations whose result can be much larger
  than their operands are sized before they run.
- CPU time is checked at every turn of a loop, call, filter and operator, and ends the render after
  `Limits.seconds`. Between two checks lie only comparisons and look-ups, at most as many as the template's
  text has, on values of bounded size.

Python's own recursion limit ends recursion. Every breach is a TemplateError.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, cast

from jinja2 import Undefined, nodes
from jinja2.exceptions import SecurityError
from jinja2.exceptions import TemplateError as JinjaError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from freehold.core.errors import TemplateError
from freehold.model.chat_functions import (
    expect_binop,
    filters,
    functions,
    printable,
    printable_in_context,
    sized_method,
)
from freehold.model.chat_limits import BUDGET, Budget, Limits, join_pieces

_TEXT_METHODS = frozenset(
    (
        "capitalize",
        "casefold",
        "count",
        "endswith",
        "find",
        "format",
        "index",
        "isalnum",
        "isalpha",
        "isascii",
        "isdecimal",
        "isdigit",
        "islower",
        "isnumeric",
        "isspace",
        "istitle",
        "isupper",
        "join",
        "lower",
        "lstrip",
        "partition",
        "removeprefix",
        "removesuffix",
        "replace",
        "rfind",
        "rindex",
        "rpartition",
        "rsplit",
        "rstrip",
        "split",
        "splitlines",
        "startswith",
        "strip",
        "swapcase",
        "title",
        "upper",
    )
)


class _GenerationExtension(Extension):
    """`{% generation %}`, which marks answers for training; for rendering its body is all that counts."""

    tags = {"generation"}  # noqa: RUF012 - jinja's interface

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with the filters and functions of chat templates, under a budget."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self, now: Callable[[], datetime]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[LoopControlExtension, _GenerationExtension],
            finalize=printable_in_context,
            # Folding constants would run filters while compiling, for nothing.
            optimized=False,
        )
        self.globals = dict(functions(now))
        self.filters = filters()
        # What instrumented templates call; a template cannot name these.
        self._own = (self.tick, self.take, self.tilde, self.plain)

    # Jinja calls this for the output and for every captured block, with all pieces at hand.
    concat = staticmethod(join_pieces)

    def parse_bounded(self, source: str) -> nodes.Template:
        """The template's tree with a check in each loop and macro and around each value that is built."""
        tree = self.parse(source)
        _instrument(tree)
        return tree

    def tick(self) -> str:
        """Called by instrumented templates at the start of each loop turn and macro."""
        return ""

    def take(self, value: Any) -> Any:
        """Called by instrumented templates with each list, tuple and dictionary; `call` counts it."""
        return value

    def tilde(self, values: list[Any]) -> str:
        """Called by instrumented templates for `a ~ b`."""
        return self.concat([str(printable(value)) for value in values])

    def plain(self, value: Any) -> Any:
        """Called by instrumented templates with each value that goes into a namespace; it may not be one."""
        if isinstance(value, Namespace):
            raise SecurityError("a chat template may not put a namespace into a namespace")
        return value

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if not super().is_safe_attribute(obj, attr, value):
            return False
        if isinstance(obj, str):
            return attr in _TEXT_METHODS
        if isinstance(obj, dict):
            return attr in ("get", "items", "keys", "values")
        if isinstance(obj, (list, tuple)):
            return attr in ("count", "index")
        return isinstance(obj, (LoopContext, Macro, Namespace)) or type(obj).__module__ == "jinja2.utils"

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        # Jinja prints nothing for these, and fails only when they are used further.
        if attribute.startswith("_"):
            raise SecurityError(f"a chat template may not read the attribute {attribute!r}")
        return super().unsafe_undefined(obj, attribute)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        budget = BUDGET.get()
        budget.tick()
        if __obj in __self._own:
            return budget.take(__obj(*args))
        if not isinstance(__obj, Macro) and any(isinstance(v, Namespace) for v in (*args, *kwargs.values())):
            raise SecurityError("a chat template may hand a namespace only to its own macros")
        return budget.take(super().call(__context, sized_method(budget, __obj), *args, **kwargs))

    def call_binop(self, context: Context, op: str, left: Any, right: Any) -> Any:
        budget = BUDGET.get()
        budget.tick()
        expect_binop(budget, op, left, right)
        return budget.take(super().call_binop(context, op, left, right))


def run_bounded(action: Callable[[], str], limits: Limits) -> str:
    """Runs a compilation or a render under `limits`; whatever goes wrong in it becomes a TemplateError."""
    token = BUDGET.set(Budget(limits))
    try:
        return action()
    except TemplateError:
        raise
    except JinjaError as error:
        line = getattr(error, "lineno", None)
        raise TemplateError(str(error) if line is None else f"line {line}: {error}") from error
    except RecursionError as error:
        raise TemplateError("the chat template is nested too deeply, or calls itself without end") from error
    except MemoryError as error:
        raise TemplateError("the chat template needs more memory than there is") from error
    except Exception as error:  # a template can provoke any of Python's errors
        raise TemplateError(f"{type(error).__name__}: {error}") from error
    finally:
        BUDGET.reset(token)


def _instrument(tree: nodes.Template) -> None:
    """Adds the checks of `TemplateEnvironment` to a template's tree."""
    for target in tree.find_all(nodes.NSRef):
        if target.attr.startswith("_"):
            raise SecurityError(f"a chat template may not set the attribute {target.attr!r} of a namespace")
    for node in list(tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock))):
        body = cast("nodes.For | nodes.Macro | nodes.CallBlock", node).body
        body.insert(0, nodes.ExprStmt(_call("tick", [], node.lineno), lineno=node.lineno))
    _wrap_children(tree)


def _wrap_children(node: nodes.Node) -> None:
    for name, value in list(node.iter_fields()):
        if isinstance(value, nodes.Node):
            _wrap_children(value)
            setattr(node, name, _wrapped(value))
        elif isinstance(value, list):
            for child in value:
                if isinstance(child, nodes.Node):
                    _wrap_children(child)
            setattr(node, name, [_wrapped(child) if isinstance(child, nodes.Node) else child for child in value])
    if isinstance(node, nodes.Assign) and isinstance(node.target, nodes.NSRef):
        # A namespace inside a namespace could be nested without end and printed at exponential length.
        node.node = _call("plain", [node.node], node.lineno)


def _wrapped(node: nodes.Node) -> nodes.Node:
    if isinstance(node, nodes.Concat):
        return _call("tilde", [nodes.List(node.nodes, lineno=node.lineno)], node.lineno)
    is_value = isinstance(node, (nodes.List, nodes.Dict)) or (isinstance(node, nodes.Tuple) and node.ctx == "load")
    return _call("take", [node], node.lineno) if is_value else node


def _call(method: str, args: list[nodes.Node], line: int) -> nodes.Call:
    """A call of one of the environment's own methods, by a road that templates cannot write."""
    return nodes.Call(
        nodes.EnvironmentAttribute(method, lineno=line),
        cast("list[nodes.Expr]", args),
        [],
        None,
        None,
        lineno=line,
    )
