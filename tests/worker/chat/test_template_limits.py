"""Hostile chat templates: their time and memory are limited, and other requests are not delayed."""

from __future__ import annotations

import time
from typing import Any

import pytest
from llama_corral.worker.chat.template import template as templates
from llama_corral.worker.chat.template.limits import ALLOWANCE, CostExceeded, CostMeter, TimeExceeded, cost_of
from llama_corral.worker.chat.template.template import ChatTemplate, TemplateError
from programs import Programs

MESSAGES = [{"role": "user", "content": "Hello <world>"}, {"role": "assistant", "content": "a,b,c"}]


def render(source: str, seconds: float = 1.0, **variables: Any) -> str:
    return ChatTemplate(source).render(MESSAGES, add_generation_prompt=True, variables=variables, seconds=seconds)


def doubled(start: str, step: str, end: str = "", n: int = 60) -> str:
    return f"{{% set x = {start} %}}" + f"{{% set x = {step} %}}" * n + end


SLOW = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "conditions": "{% for a in range(99999) %}{% for b in range(99999) if b < 0 %}{% endfor %}{% endfor %}",
    "calls": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}",
    "recursive": "{% for a in [1, 2] recursive %}{% if loop.depth < 80 %}{{ loop([1, 2]) }}{% endif %}{% endfor %}",
    "filters": "{% for a in range(99999) %}{{ range(99999) | map('string') | list | length }}{% endfor %}",
    "changed": "{% for a in range(99999) %}{{ loop.changed('a' * 9999) }}{% endfor %}",
    "path": "{% set n = namespace(d={'a': 1}) %}{% for i in range(9000) %}{% set n.d = {'a': n.d} %}{% endfor %}"
    "{{ ([n.d] * 99999) | map(attribute='a.' * 8998 ~ 'a') | list | length }}",
}
LARGE = {
    "text": doubled("'a'", "x + x"),
    "tilde": doubled("'a'", "x ~ x"),
    "times": "{{ 'a' * 10 ** 12 }}",
    "list": "{{ [1] * 10 ** 12 }}",
    "lists": doubled("[1]", "x + x"),
    "power": "{{ 10 ** (10 ** 10) }}",
    "squares": doubled("7", "x * x"),
    "percent": "{{ '%1000000000d' % 1 }}",
    "star": "{{ '%*d' % (1000000000, 1) }}",
    "format": "{{ '{:1000000000}'.format(1) }}",
    "format of a format": "{{ '{:{}}'.format(1, 1000000000) }}",
    "format_map": "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
    "formatted": doubled("'a'", "'{0}{0}'.format(x)"),
    "format filter": doubled("'a'", "'%s%s' | format(x, x)"),
    "center": "{{ 'a'.center(10 ** 10) }}",
    "rjust": "{{ 'a'.rjust(10 ** 10) }}",
    "zfill": "{{ 'a'.zfill(10 ** 10) }}",
    "expandtabs": "{{ '\t'.expandtabs(10 ** 9) }}",
    "replace": doubled("'a'", "x.replace('a', 'aaaa')"),
    "replace filter": doubled("'a'", "x | replace('a', 'aaaa')"),
    "join": doubled("'a'", "x.join([x, x])"),
    "join filter": doubled("'a'", "[x, x] | join"),
    "padding": "{{ 'a' | center(10 ** 10) }}",
    "indent": "{{ ('\n' * 1000000) | indent(99999) }}",
    "batch": "{{ [1] | batch(10 ** 10, 1) | list }}",
    "slices": "{{ [1] | slice(10 ** 10) | list }}",
    "tojson": "{{ [1] | tojson(indent=10 ** 10) }}",
    "split": "{{ ('a' * 10 ** 8).split('a') | length }}",
    "nested": doubled("[1]", "[x, x]", "{{ x }}"),
    "nested json": doubled("[1]", "[x, x]", "{{ x | tojson }}"),
    "nested text": doubled("[1]", "[x, x]", "{{ (x | string) | length }}"),
    "nested tilde": doubled("[1]", "{'a': x, 'b': x}", "{{ x ~ '' }}"),
    "nested equality": "{% set y = [2] %}" + doubled("[1]", "[x, x]", "{% set z = x == y %}"),
    "nested key": doubled("(1,)", "(x, x)", "{{ {x: 1} }}"),
    "nested item": doubled("(1,)", "(x, x)", "{{ {}[x] }}"),
    "nested views": doubled("{'a': 1}", "{'a': x, 'b': x}", "{{ x.values() }}"),
    "nested names": doubled("namespace()", "namespace(a=x, b=x)", "{{ x }}"),
    "nested unique": doubled("(1,)", "(x, x)", "{{ [x] | unique | list }}"),
    "nested format": doubled("[1]", "[x, x]", "{{ '{}'.format(x) }}"),
    "blocks": "{% set x = 'a' %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60,
    "constants": "{% set x %}{% for i in range(99999) %}" + "a" * 9999 + "{% endfor %}{% endset %}",
    "output": "{% for i in range(99999) %}" + "a" * 9999 + "{% endfor %}",
    "formats": "{{ ('{0:99999}' * 30000).format(1) | length }}",
    "nested formats": "{{ ('{0:{0}}' * 30000).format(99999) | length }}",
    "percents": "{{ ('%99999d' * 3000) | format(*range(3000)) | length }}",
    "percents of a mapping": "{{ ('%(a)s' * 9000) % {'a': 'x' * 99999} }}",
    "named format": "{{ ('%(a)s' * 9000) | format(a='x' * 99999) }}",
    "named replace": "{{ ('a' * 9999) | replace(new='b' * 99999, old='') }}",
    "named join": "{{ (['a'] * 9999) | join(attribute=none, d='b' * 99999) }}",
    "deep json": "{{ ([[[[1]]]] * 9999) | tojson(indent=99999) }}",
    "json separators": "{{ ([[1]] * 9999) | tojson(separators=['x' * 9999, 'y']) }}",
    "strip": "{{ ('a' * 3000000).strip('b' * 999999 ~ 'a') | length }}",
    "trim": "{{ ('a' * 3000000) | trim('b' * 999999 ~ 'a') | length }}",
    "casefold": "{{ ('ß' * 30000000).casefold() | length }}",
    "title": "{{ ('a ' * 3000000) | title | length }}",
    "emoji": "{{ '😀' * 200000000 }}",
    "bits": "{% set a = ('f' * 900000) | int(base=16) %}{{ a // 7 }}",
    "difference": "{% set n = namespace(a=7) %}{% for i in range(9999) %}{% set n.a = n.a - (0 - n.a) %}{% endfor %}",
    "nested error": doubled("[1]", "[x, x]", "{{ raise_exception(x) }}"),
    "nested change": doubled("[1]", "[x, x]", "{% for a in [1] %}{{ loop.changed(x) }}{% endfor %}"),
    "nested dict": doubled("(1,)", "(x, x)", "{{ dict([(x, 1)]) }}"),
    "nested get": doubled("(1,)", "(x, x)", "{{ {}.get(x) }}"),
    "nested chain": "{% set y = [2] %}" + doubled("[1]", "[x, x]", "{{ x == y == 1 }}"),
    "nested test": "{% set y = [2] %}" + doubled("[1]", "[x, x]", "{{ x is lessthan y }}"),
    "kept": "{% set n = namespace(l=[]) %}{% set s = 'a' * 10 ** 7 %}"
    "{% for i in range(9999) %}{% set n.l = n.l + [s[i:]] %}{% endfor %}",
}
BARRED = {
    "translate": "{{ 'a'.translate({97: 'b'}) }}",
    "bytes": "{{ (1).to_bytes(10 ** 12, 'big') }}",
    "class": "{{ ''.__class__.__mro__ }}",
    "globals": "{{ raise_exception.__globals__ }}",
    "base": "{{ messages.__class__.__base__.__subclasses__() }}",
    "format attribute": "{{ '{0.__class__.__mro__}'.format('') }}",
    "change": "{{ messages.clear() }}",
    "urlize": "{{ ('(' * 100000 ~ 'www.a.com') | urlize }}",
    "wordwrap": "{{ ('a' * 200000) | wordwrap(1) }}",
    "decode": "{{ ('a' * 9999999).encode().decode('punycode') }}",
    "integer": "{{ (1).from_bytes([255] * 9999999, 'big') }}",
    "autoescape": "{% autoescape true %}{{ '<' }}{% endautoescape %}",
}


@pytest.mark.parametrize("name", SLOW)
def test_a_template_that_takes_too_long_is_aborted(name: str) -> None:
    begun = time.monotonic()
    with pytest.raises(TemplateError, match=r"takes too long|writes too much|without end"):
        render(SLOW[name], seconds=0.1)
    assert time.monotonic() - begun < 20  # the machine may be busy; without limits these take years


@pytest.mark.parametrize("name", LARGE)
def test_a_template_that_would_fill_the_memory_is_aborted(name: str) -> None:
    with pytest.raises(TemplateError, match=r"too much|too large|too deeply|too wide|too long"):
        render(LARGE[name], seconds=30)


@pytest.mark.parametrize("name", SLOW | LARGE)
def test_a_quick_rendering_is_given_up_early(name: str) -> None:
    """It runs on the thread that serves all requests: it may take a tenth of a second, and one operation more."""
    template = ChatTemplate((SLOW | LARGE)[name])
    begun = time.process_time()
    with pytest.raises(TemplateError):
        template.render(MESSAGES, add_generation_prompt=True, seconds=0.1, quick=True)
    assert time.process_time() - begun < 2


def test_a_rendering_stops_when_its_result_is_not_wanted_anymore() -> None:
    asked = []

    def given_up() -> bool:
        asked.append(True)
        return len(asked) > 3

    with pytest.raises(templates.TemplateSlow):
        ChatTemplate(SLOW["loops"]).render(MESSAGES, add_generation_prompt=True, seconds=600, given_up=given_up)


def test_a_template_cannot_fill_the_memory_with_copies_of_a_long_message() -> None:
    source = (
        "{% set n = namespace(l=[]) %}{% for i in range(9999) %}"
        "{% set n.l = n.l + [messages[0].content * 2] %}{% endfor %}"
    )
    with pytest.raises(TemplateError, match="too much memory"):
        ChatTemplate(source).render(
            [{"role": "user", "content": "x" * 400_000}], add_generation_prompt=False, seconds=60
        )


@pytest.mark.parametrize("name", BARRED)
def test_a_template_cannot_escape_the_sandbox(name: str) -> None:
    try:
        text = render(BARRED[name])
    except TemplateError:
        return
    assert not text


def test_lists_changed_by_append_are_limited_too() -> None:
    source = "{% set x = [] %}" + "{% set x = [x, x] %}" * 15 + "{{ x.append('a' * 10 ** 6) or '' }}"
    assert render(source) == ""
    bomb = "{% set a = [] %}{% set x = [a, a] %}" + "{% set x = [x, x] %}" * 15
    with pytest.raises(TemplateError, match="too much"):
        render(bomb + "{{ a.append('a' * 10 ** 6) or '' }}{{ x | tojson }}")


@pytest.mark.parametrize("source", ["{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "a" * (templates.MAX_SOURCE + 1)])
def test_a_template_too_large_to_parse_is_an_error(source: str) -> None:
    with pytest.raises(TemplateError, match="cannot be parsed"):
        ChatTemplate(source)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ 'a' ~ 1 ~ none ~ [1, 'b'] }}", "a1None[1, 'b']"),
        ("{{ messages[1:][0].content[::2] }}|{{ messages[0].content[-6:-1] }}", "abc|world"),
        ("{{ messages[0].role == messages[1].role }}{{ 1 < 2 < 3 }}{{ 'a' in 'cab' }}", "FalseTrueTrue"),
        ("{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ ';' if not loop.last }}{% endfor %}", "1/2;2/2"),
        ("{% for a in [] %}x{% else %}none{% endfor %}", "none"),
        ("{{ messages | map(attribute='role') | join(' & ') }}", "user & assistant"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "1"),
        ("{{ ','.join(messages | map(attribute='role')) }}", "user,assistant"),
        ("{{ 'a,b'.split(',') | tojson }}{{ {'k': [1]} | tojson(indent=1) }}", '["a", "b"]{\n "k": [\n  1\n ]\n}'),
        ("{{ '%s-%03d' % ('x', 7) }}{{ '{:>4}|{a}'.format('y', a=2) }}{{ '%s' | format('z') }}", "x-007   y|2z"),
        ("{{ 'x' * 3 }}{{ [1] * 2 }}{{ 2 ** 8 }}{{ 7 % 4 }}{{ missing + 'a' }}", "xxx[1, 1]2563a"),
        ("{{ 'a\nb' | indent(2) }}{{ 'ab' | replace('a', 'c') }}{{ ' t ' | trim }}", "a\n  bcbt"),
        ("{% macro m(x) %}<{{ x }}{{ caller() }}>{% endmacro %}{% call m('b') %}c{% endcall %}", "<bc>"),
        ("{% set n = namespace(a=1) %}{% for i in range(3) %}{% set n.a = n.a + i %}{% endfor %}{{ n.a }}", "4"),
        ("{{ messages | sum(attribute='n', start=2) if false else [1, 2] | sum }}{{ [3, 1] | sort | first }}", "31"),
    ],
)
def test_the_limits_do_not_change_the_output_of_normal_templates(source: str, text: str) -> None:
    assert render(source) == text


def test_a_long_conversation_may_be_copied_from_text_to_text() -> None:
    source = "{% set n = namespace(t='') %}{% for m in messages %}{% set n.t = n.t + m.content %}{% endfor %}{{ n.t }}"
    messages = [{"role": "user", "content": "x" * 4000} for _ in range(500)]
    assert ALLOWANCE < 500 * 500 * 4000 / 2
    assert len(ChatTemplate(source).render(messages, add_generation_prompt=False)) == 500 * 4000


def test_the_limit_grows_with_the_input() -> None:
    assert cost_of(["ab", {"k": "cd"}]) == 10
    meter = CostMeter(60, "x")
    meter.charge(ALLOWANCE)
    meter.charge(1024)
    with pytest.raises(CostExceeded):
        meter.charge(2048)
    with pytest.raises(TimeExceeded):
        CostMeter(-1).charge(1)


# -- over HTTP ---------------------------------------------------------------------------------------------------------

HOSTILE = "{{ messages[0].content }}{% for a in range(n or 0) %}{% for b in range(n) %}{% endfor %}{% endfor %}"


def test_a_request_whose_template_does_not_end_is_refused_and_others_are_served(programs: Programs) -> None:
    program = programs.worker_with_template(HOSTILE)
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    refused = program.client.post("/v1/chat/completions", json={**body, "chat_template_kwargs": {"n": 99999}})
    assert refused.status_code == 400
    assert refused.json()["error"]["message"].startswith("chat template failed: it ")
    assert program.client.post("/v1/chat/completions", json=body).status_code == 200


@pytest.mark.parametrize(
    ("source", "why"),
    [
        pytest.param(SLOW["conditions"], "takes too long", id="conditions"),  # charged once in 99,999 comparisons
        pytest.param(LARGE["output"], "writes too much", id="output"),  # at the allowance within milliseconds
    ],
)
def test_a_template_that_costs_too_much_makes_only_chats_unavailable(programs: Programs, source: str, why: str) -> None:
    program = programs.worker_with_template(source)
    reason = f"chat template {why} for the smallest conversations"
    refused = program.client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hi"}]})
    assert (refused.status_code, refused.json()["error"]["message"]) == (
        501,
        f"chats are not available with this model: {reason}",
    )
    assert reason in program.log_text
    assert program.client.post("/completion", json={"prompt": "Hi", "n_predict": 2}).status_code == 200
