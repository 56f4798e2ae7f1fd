"""Hostile chat templates: they reach no Python object and end soon, in a TemplateError."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from freehold.core.errors import TemplateError
from freehold.model.chat import ChatFormat

USER = [{"role": "user", "content": "hi"}]

ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ messages.__class__ }}",
    "{{ messages[0].__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__globals__['json'] }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ joiner('x').__init__.__globals__ }}",
    "{{ range.__globals__ }}",
    "{{ dict.mro() }}",
    "{{ dict.fromkeys([1]) }}",
    "{{ self.__init__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ loop }}{% for m in messages %}{{ loop.__class__ }}{% endfor %}",
    "{{ ('{0.__class__}').format(messages) }}",
    "{{ ('{0[__class__]}').format('x') }}",
    "{{ ('{a.__init__.__globals__}').format_map({'a': messages}) }}",
    "{{ messages | map(attribute='__class__') | list }}",
    "{{ ['x'] | map('attr', '__class__') | list }}",
    "{{ 'x' | attr('__class__') }}",
    "{{ messages | selectattr('__class__') | list }}",
    "{{ messages | sort(attribute='__class__.__name__') }}",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "{% macro m() %}{{ caller.__class__ }}{% endmacro %}{% call m() %}{% endcall %}",
    "{% set ns = namespace(__class__=1) %}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{% set ns = namespace({'__class__': 1}) %}",
    "{{ undefined_thing.__class__.__init__ }}",
    "{{ lipsum }}{{ lipsum.__globals__ }}",
    "{{ messages.append({'role': 'x'}) }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{{ messages[0].pop('role') }}",
    "{{ messages.clear() }}",
    "{% import 'os' as os %}",
    "{% from 'os' import system %}",
    "{% extends 'x' %}",
    "{% set x = cycler('a').next.__func__ %}{{ x }}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_no_python_object_is_reachable(template: str) -> None:
    with pytest.raises(TemplateError):
        ChatFormat(template).render(USER)


DOUBLE = "{% set x = x ~ x %}"
NEST = "{% set x = [x, x] %}"

BOMBS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "nested loops over texts": "{% set x = 'a' * 9999 %}" + "{% for a in x %}" * 3 + "{% endfor %}" * 3,
    "recursive loop": "{% for a in range(99999) recursive %}"
    "{% if loop.depth < 4 %}{{ loop(range(99999)) }}{% endif %}{% endfor %}",
    "macros that call twice": "{% macro m(n) %}"
    "{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "endless macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a chain of filters": "{% for a in range(99999) %}{% set x = range(99999) | map('string') | list %}{% endfor %}",
    "a wide range": "{{ range(999999999) | list }}",
    "a long output": "{% for a in range(99999) %}{{ 'x' * 900 }}{% endfor %}",
    "repetition": "{{ 'x' * 999999999999 }}",
    "repetition of a list": "{{ [0] * 999999999 }}",
    "repetition from the left": "{{ 999999999 * 'x' }}",
    "a power": "{{ 9 ** (9 ** 9) }}",
    "a growing integer": "{% set ns = namespace(x=3) %}"
    "{% for a in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "rounding": "{{ 1.5 | round(999999999, 'ceil') }}",
    "doubling": "{% set x = 'x' %}" + DOUBLE * 50,
    "doubling by addition": "{% set x = 'x' %}" + "{% set x = x + x %}" * 50,
    "doubling by capture": "{% set x = 'x' %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 50,
    "doubling by macro": "{% set x = 'x' %}{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}" + "{% set x = m(x) %}" * 50,
    "doubling a list": "{% set x = [1] %}" + "{% set x = x + x %}" * 50 + "{{ x }}",
    "nesting": "{% set x = 'x' %}" + NEST * 50 + "{{ x }}",
    "nesting a tuple": "{% set x = 'x' %}" + "{% set x = (x, x) %}" * 50 + "{{ x | tojson }}",
    "nesting a dictionary": "{% set x = 'x' %}" + "{% set x = {'a': x, 'b': x} %}" * 50 + "{{ x }}",
    "nesting by a call": "{% set x = 'x' %}" + "{% set x = dict(a=x, b=x) %}" * 50 + "{{ x }}",
    "nesting by comparison": "{% set x = 'x' %}{% set y = 'x' %}"
    + (NEST + NEST.replace("x", "y")) * 50
    + "{{ x == y }}",
    "nesting namespaces": "{% set x = namespace() %}" + "{% set x = namespace(a=x, b=x) %}" * 50 + "{{ x }}",
    "namespaces in namespaces": "{% set a = namespace() %}{% set b = namespace() %}{% set b.x = a %}{{ b }}",
    "namespaces in lists": "{% set x = namespace() %}{{ [x, x] }}",
    "replacing": "{% set x = 'a' * 99999 %}{{ x | replace('a', x) }}",
    "replacing by method": "{% set x = 'a' * 99999 %}{{ x.replace('a', x) }}",
    "joining": "{% set x = 'a' * 99999 %}{{ x | join(x) }}",
    "joining by method": "{% set x = 'a' * 99999 %}{{ x.join(x) }}",
    "indenting": "{% set x = 'a\n' * 99999 %}{{ x | indent(99999) }}",
    "indented JSON": "{{ [[[1]]] | tojson(indent=999999999) }}",
    "JSON separators": "{{ [1, 2] | tojson(separators=('x' * 99999, 'x')) }}",
    "padding by format": "{{ '{:999999999}'.format('x') }}",
    "padding by computed format": "{{ '{:{}}'.format('x', 999999999) }}",
    "padding by percent": "{{ '%999999999d' % 1 }}",
    "padding by computed percent": "{{ '%*d' % (999999999, 1) }}",
    "many fields": "{% set x = 'a' * 999999 %}{{ ('{0}' * 9999).format(x) }}",
    "padding by method": "{{ 'x'.ljust(999999999) }}",
    "padding by zeros": "{{ 'x'.zfill(999999999) }}",
    "padding by tabs": "{{ '\t'.expandtabs(999999999) }}",
    "padding by filter": "{{ 'x' | center(999999999) }}",
    "slicing": "{{ [1] | slice(999999999) | list }}",
    "batching": "{{ [1] | batch(999999999, 0) | list }}",
    "padding by time": "{{ strftime_now('%999999999Y') }}",
    "deep nesting": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "a huge template": "x" * 1_000_001,
}


@pytest.mark.parametrize("name", BOMBS)
def test_no_template_runs_on_or_grows_on(name: str) -> None:
    start = time.thread_time()
    with pytest.raises(TemplateError) as error:
        ChatFormat(BOMBS[name], max_seconds=0.2).render(USER)
    assert "more memory" not in str(error.value)  # a limit has to come before the machine's own
    assert time.thread_time() - start < 5


def test_the_time_is_that_of_one_render() -> None:
    chat = ChatFormat("{% for a in range(20000) %}{% endfor %}", max_seconds=0.5)
    start = time.thread_time()
    while time.thread_time() - start < 0.6:
        assert chat.render(USER) == ""


def test_limits_grow_with_the_conversation() -> None:
    long = [{"role": "user", "content": "word " * 400_000}]
    assert len(ChatFormat("{{ messages[0].content }}{{ messages[0].content | tojson }}").render(long)) == 4_000_002


def test_one_template_serves_several_threads() -> None:
    chat = ChatFormat("{% for m in messages %}{{ m.content }}{% endfor %}")

    def render(number: int) -> bool:
        return chat.render([{"role": "user", "content": str(number)}] * 50) == str(number) * 50

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(render, range(64)))


HARMLESS = [
    ("{{ 'a-b'.split('-') | join('+') }}", "a+b"),
    (
        "{{ '-'.join(['a', 'b']) }}{{ 'aa'.replace('a', 'b', 1) }}{{ '{}{x:.1f}'.format('a', x=1.25) }}",
        "a-bbaa1.2",
    ),
    ("{{ '%s is %d' % ('x', 3) }}", "x is 3"),
    (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "1",
    ),
    (
        "{% macro m(ns) %}{% set ns.x = 2 %}{% endmacro %}{% set ns = namespace(x=1) %}{{ m(ns) }}{{ ns.x }}",
        "2",
    ),
    ("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}", "a1"),
    ("{% set a, b = 1, 2 %}{{ a }}{{ b }}{{ (a, b) }}{{ [a] + [b] }}", "12(1, 2)[1, 2]"),
    ("{{ messages | map(attribute='role') | list | tojson }}", '["user"]'),
    ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "1"),
    ("{{ messages[::-1] | length }}{{ messages[0]['content'][1:] }}", "1i"),
    ("{{ 'x\ny' | indent(2) }}|{{ 'x\ny\n' | indent(2, first=true) }}", "x\n  y|  x\n  y\n"),
    ("{{ 2.5 | round | int }}{{ 2 ** 10 }}{{ 7 // 2 }}{{ 'a' ~ 1 ~ none }}", "210243a1None"),
    ("{% set x %}a{{ 1 }}{% endset %}{{ x }}{{ ' b ' | trim }}{{ 'c' | upper }}", "a1bC"),
    ("{{ cycler('a', 'b').next() }}{{ cycler('a').current }}", "aa"),
    ("{% for m in [1, 2] %}{{ loop.cycle('x', 'y') }}{{ loop.last }}{% endfor %}", "xFalseyTrue"),
    (
        "{{ missing is defined }}{{ missing }}{{ missing | default('d') }}{{ {'a': missing}.a is defined }}",
        "FalsedFalse",
    ),
    ("{% for x in [1, [2]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}", "12"),
]


@pytest.mark.parametrize(("template", "expected"), HARMLESS)
def test_what_honest_templates_do_still_works(template: str, expected: str) -> None:
    assert ChatFormat(template).render(USER) == expected
