"""Chat templates: the sandbox, Hugging Face's conventions, conversion of messages, continued messages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import pytest
from llama_corral.common.base.errors import InvalidRequest
from llama_corral.worker.chat.content import ContentReader
from llama_corral.worker.chat.messages import read_messages, shaped
from llama_corral.worker.chat.prompt import ChatFormat, RenderedPrompt
from llama_corral.worker.chat.request import ChatDefaults, probabilities_wanted, read_chat
from llama_corral.worker.chat.template.capabilities import Capabilities, probe
from llama_corral.worker.chat.template.template import CHATML, ChatTemplate, TemplateError

TYPED = """\
{%- for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role here') }}{% endif -%}
<{{ m.role }}>{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}
{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""

LLAMA3 = """\
{{- bos_token }}{%- for m in messages -%}
{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt -%}
{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}"""

TOOLS = """\
{% if tools %}TOOLS {{ tools | tojson }}
{% endif %}{% for m in messages %}{% if m.tool_calls %}{% for c in m.tool_calls %}\
CALL {{ c.function.name }} {% for k, v in c.function.arguments.items() %}{{ k }}={{ v }} {% endfor %}{% endfor %}
{% endif %}{{ m.role }}: {{ m.content }} {% if preserve_thinking %}{{ m.reasoning_content }}{% endif %}
{% endfor %}{% if reasoning_effort %}effort {{ reasoning_effort }}{% endif %}"""

USER = {"role": "user", "content": "Hi"}
SYSTEM = {"role": "system", "content": "Be brief"}


def render(source: str, **variables: Any) -> str:
    messages = variables.pop("messages", [USER])
    return ChatTemplate(source).render(messages, add_generation_prompt=False, variables=variables)


def prompt_of(body: Mapping[str, Any], source: str | None = None, **options: Any) -> RenderedPrompt:
    def no_builtin(template: str, chat: Sequence[tuple[str, str]], opens: bool) -> str | None:
        return None

    return ChatFormat(source, **options).render(read_chat(body, ChatDefaults()), no_builtin)


def text_of(body: Mapping[str, Any], source: str | None = None, **options: Any) -> str:
    return prompt_of(body, source, **options).text


# -- the environment -------------------------------------------------------------------------------------------------


def test_conventions_of_hugging_face() -> None:
    assert render("{% if true %}\n  a\n{% endif %}\nb") == "  a\nb"
    assert render("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "012"
    assert render("{{ {'a': '<é>', 'b': [1]} | tojson }}") == '{"a": "<é>", "b": [1]}'
    assert render("{{ {'a': 1} | tojson(indent=2) }}") == '{\n  "a": 1\n}'
    assert render("a{% generation %}b{{ 1 + 1 }}{% endgeneration %}c") == "ab2c"
    assert render("{{ strftime_now('%Y') }}") == str(datetime.now().year)
    assert render("{{ date_string }}") == datetime.now().strftime("%d %b %Y")
    assert render("{% set ns = namespace(n=0) %}{% set ns.n = 5 %}{{ ns.n }}") == "5"
    assert (
        render("{{ missing }}|{{ missing is defined }}|{{ 'a' + missing + 'b' }}|{{ missing + 'c' }}") == "|False|ab|c"
    )
    assert render("{{ 'say '|safe + {'a': '<b>'} | tojson }}") == 'say {"a": "<b>"}'
    assert render("{{ 'é' | tojson(ensure_ascii=True) }}") == '"\\u00e9"'


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ strftime_now.__globals__['json'] }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ messages['app' ~ 'end'](1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{% for i in range(10000000) %}x{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% include 'etc/passwd' %}",
        "{{ 1 / 0 }}",
        "{{ raise_exception('not with me') }}",
        "{{ 'a' + 1 }}",
        "{{ messages[9].role }}",
    ],
)
def test_hostile_or_failing_templates_raise_template_error(source: str) -> None:
    with pytest.raises(TemplateError):
        render(source)


@pytest.mark.parametrize("source", ["{% for %}", "{{ a", "{% unknown %}", "{% endfor %}"])
def test_an_invalid_template_is_an_error(source: str) -> None:
    with pytest.raises(TemplateError, match="cannot be parsed"):
        ChatTemplate(source)


def test_messages_that_the_template_refuses_are_a_client_error() -> None:
    with pytest.raises(InvalidRequest, match="only one"):
        text_of({"messages": [USER]}, "{{ raise_exception('only one assistant') }}")


def test_a_template_may_change_its_own_lists_but_not_its_input() -> None:
    messages = [USER]
    template = ChatTemplate(
        "{% set l = [] %}{% set _ = l.append(1) %}{% set _ = messages.append(2) %}{{ l }}{{ messages | length }}"
    )
    assert template.render(messages, add_generation_prompt=False) == "[1]2"
    taken = ChatTemplate(
        "{% set q = namespace(ids=['a', 'b']) %}{{ q.ids.pop(0) }}{{ q.ids }}{{ messages.pop().role }}"
    )
    assert taken.render(messages, add_generation_prompt=False) == "a['b']user"
    assert messages == [USER]
    with pytest.raises(TemplateError, match="unsafe"):
        ChatTemplate("{{ messages[0].pop('role') }}").render(messages, add_generation_prompt=False)
    assert render("{{ [1, 2] | map('string') | tojson }}") == '["1", "2"]'


# -- messages --------------------------------------------------------------------------------------------------------


def test_capabilities() -> None:
    assert probe(ChatTemplate(CHATML)) == Capabilities()
    typed = probe(ChatTemplate(TYPED))
    assert (typed.supports_string_content, typed.supports_typed_content) == (False, True)
    assert not typed.supports_system_role
    tools = probe(ChatTemplate(TOOLS))
    assert tools.supports_tools
    assert tools.supports_tool_calls
    assert tools.supports_parallel_tool_calls
    assert tools.supports_object_arguments
    assert tools.supports_preserve_reasoning
    assert tools.supports_reasoning_effort
    assert not tools.supports_typed_content
    assert probe(ChatTemplate("This is not a template")) == Capabilities(supports_system_role=False)


def test_a_missing_template_is_replaced_by_chatml() -> None:
    expected = "<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert text_of({"messages": [SYSTEM, USER]}) == expected
    assert text_of({"messages": [SYSTEM, USER]}, "chatml") == expected
    assert text_of({"messages": [SYSTEM, USER], "add_generation_prompt": False}) + "<|im_start|>assistant\n" == expected


def test_content_parts_are_joined_for_templates_without_typed_content() -> None:
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": "this"}]
    assert "user\nWhat is\nthis<" in text_of({"messages": [{"role": "user", "content": parts}]})
    assert "<user>What isthis" in text_of({"messages": [{"role": "user", "content": parts}]}, TYPED)
    assert "<user>Hi" in text_of({"messages": [USER]}, TYPED)


def test_a_system_message_is_converted_to_a_supported_role() -> None:
    assert text_of({"messages": [SYSTEM, USER]}, TYPED).startswith("<user>Be brief\nHi")
    assert text_of({"messages": [{**SYSTEM, "role": "developer"}, USER]}).startswith("<|im_start|>system\nBe brief")
    kept = ChatFormat("<|channel|>{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}")
    chat = read_chat({"messages": [{**SYSTEM, "role": "developer"}]}, ChatDefaults())
    assert "developer:Be brief" in kept.render(chat, lambda *_: None).text


def test_bos_and_eos_are_removed_if_the_tokenizer_adds_them() -> None:
    text = text_of({"messages": [USER]}, LLAMA3, bos_text="<s>", add_bos=True)
    assert text.startswith("<|start_header_id|>user")
    assert text_of({"messages": [USER]}, LLAMA3, bos_text="<s>").startswith("<s><|start_header_id|>")
    assert text_of({"messages": [USER]}, "{{ messages[0].content }}</s>", eos_text="</s>", add_eos=True) == "Hi"


def test_arguments_of_earlier_tool_calls_are_objects_if_the_template_needs_them() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [
        USER,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "ok", "tool_call_id": "1"},
    ]
    assert "CALL f a=1" in text_of({"messages": messages}, TOOLS)
    call["function"] = {"name": "f", "arguments": "{"}
    assert "CALL f arguments={" in text_of({"messages": messages}, TOOLS)


def test_template_variables_and_reasoning_effort() -> None:
    source = "{{ style }} {{ enable_thinking }} {{ reasoning_effort }}"
    body = {"messages": [USER], "chat_template_kwargs": {"style": "plain", "enable_thinking": False}}
    assert text_of({**body, "reasoning_effort": "high"}, source) == "plain False high"
    assert text_of({"messages": [USER], "reasoning_effort": "none"}, source) == " False "


@pytest.mark.parametrize(("shown", "thinks"), [("", False), ("<think>{{ m.reasoning_content }}</think>", True)])
def test_thinking_is_enabled_by_default_if_the_template_has_reasoning(shown: str, thinks: bool) -> None:
    source = "{% for m in messages %}[{{ m.role }}]" + shown + "{{ m.content }}[end]{% endfor %}{{ enable_thinking }}"
    assert text_of({"messages": [USER]}, source).endswith(f"[end]{thinks}")


# -- continuing ------------------------------------------------------------------------------------------------------

PARTS = [{"type": "text", "text": "Wh"}, {"type": "text", "text": "ill"}]


def test_a_last_assistant_message_is_continued() -> None:
    prompt = prompt_of({"messages": [USER, {"role": "assistant", "content": "Whill"}]})
    assert prompt.text.endswith("<|im_start|>assistant\nWhill")
    assert prompt.prefill == "Whill"
    assert prompt.generation_prompt == "<|im_start|>assistant\nWhill"
    parts = text_of({"messages": [USER, {"role": "assistant", "content": PARTS}]}, LLAMA3)
    assert parts.endswith("<|start_header_id|>assistant<|end_header_id|>\n\nWh\n\nill")


@pytest.mark.parametrize("blanks", [("", "", ""), ("\n", "\n", "\n\n"), ("", "", "\n")])
def test_continued_reasoning_has_the_white_space_of_the_template(blanks: tuple[str, str, str]) -> None:
    before, after, behind = blanks
    turn = f"<think>{before}{{{{ m.reasoning_content }}}}{after}</think>{behind}{{{{ m.content }}}}"
    source = "{% for m in messages %}[{{ m.role }}]" + turn + "[end]{% endfor %}"
    source += "{% if add_generation_prompt %}[assistant]{% endif %}"
    said = {"role": "assistant", "content": "Whill", "reasoning_content": "Hm"}
    assert text_of({"messages": [USER, said]}, source).endswith(f"<think>{before}Hm{after}</think>{behind}Whill")


def test_continue_final_message_gives_the_same_prompt_as_a_last_assistant_message() -> None:
    messages = [USER, {"role": "assistant", "content": "Whill"}]
    asked = {"messages": messages, "add_generation_prompt": False, "continue_final_message": True}
    assert text_of(asked) == text_of({"messages": messages})
    assert not read_chat(asked, ChatDefaults()).shows_prefill
    assert read_chat({"messages": messages}, ChatDefaults()).shows_prefill


def test_prefill_can_be_disabled() -> None:
    chat = read_chat({"messages": [USER, {"role": "assistant", "content": "A"}]}, ChatDefaults(prefill_assistant=False))
    assert chat.continued is None
    assert len(chat.messages) == 2


IDS: list[object] = [5, 0, True, False, [], ["call_1"], {}, 1.5]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": None},
        {"messages": "Hi"},
        {"messages": [1]},
        {"messages": [{}]},
        {"messages": [{"role": 5}]},
        {"messages": [{"role": 5, "content": "x"}]},
        {"messages": [{"content": "x"}]},
        {"messages": [{"role": "assistant"}]},
        {"messages": [{"role": "user", "content": 5}]},
        {"messages": [{"role": "user", "content": [5]}]},
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "dance"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "refusal", "refusal": "No."}]}]},
        {"messages": [{"role": "tool", "content": [{"type": "refusal", "refusal": "No."}]}]},
        *({"messages": [{"role": "assistant", "tool_calls": [{"id": id, "function": {"name": "f"}}]}]} for id in IDS),
        {"messages": [{"role": "assistant", "tool_calls": 5}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"type": "function"}]}]},
        {"messages": [USER, {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"messages": [USER], "continue_final_message": True},
        {"messages": [USER], "continue_final_message": 5},
        {"messages": [USER], "add_generation_prompt": "yes"},
        {"messages": [USER], "chat_template_kwargs": 5},
        {"messages": [USER], "chat_template_kwargs": {"enable_thinking": "yes"}},
        {"messages": [USER], "tool_choice": "maybe"},
        {"messages": [USER], "tools": {}},
        {"messages": [USER], "response_format": {"type": "sound"}},
        {"messages": [USER], "response_format": "json"},
        {"messages": [USER], "response_format": {"type": "json_object", "schema": 123}},
        {"messages": [USER], "response_format": {"type": "json_schema", "json_schema": {"schema": 123}}},
    ],
)
def test_invalid_chat_requests_are_refused(body: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        read_chat(body, ChatDefaults())


def test_logprobs_of_a_chat_become_completion_fields() -> None:
    assert probabilities_wanted({"logprobs": True}) == {"n_probs": 20}
    assert probabilities_wanted({"logprobs": True, "top_logprobs": 3}) == {"n_probs": 3}
    assert probabilities_wanted({"logprobs": True, "top_logprobs": 0}) == {"n_probs": 0}
    assert probabilities_wanted({"logprobs": False}) == probabilities_wanted({"top_logprobs": 0}) == {}
    with pytest.raises(InvalidRequest, match="'top_logprobs'"):
        probabilities_wanted({"logprobs": True, "top_logprobs": 21})
    with pytest.raises(InvalidRequest, match="requires logprobs"):
        probabilities_wanted({"top_logprobs": 3})


def test_without_jinja_llama_cpp_renders_the_prompt() -> None:
    seen: list[tuple[str, Sequence[tuple[str, str]], bool]] = []

    def builtin(template: str, chat: Sequence[tuple[str, str]], opens: bool) -> str:
        seen.append((template, chat, opens))
        return "BEGIN " + ("OPEN" if opens else "")

    chat = read_chat({"messages": [{"role": "user", "content": PARTS}]}, ChatDefaults())
    prompt = ChatFormat("llama3", jinja=False).render(chat, builtin)
    assert seen[0] == ("llama3", [("user", "Wh\nill")], True)
    assert prompt.generation_prompt == "OPEN"
    with pytest.raises(InvalidRequest, match="--jinja"):
        text_of({"messages": [USER]}, "odd", jinja=False)


def test_shaping_does_not_change_its_input() -> None:
    messages = read_messages([{"role": "developer", "content": PARTS}, USER], ContentReader("<m>"))
    before = [dict(message) for message in messages]
    shaped(messages, Capabilities(supports_system_role=False), keep_developer=False)
    assert messages == before


STRICT_IDS = """\
{%- for m in messages %}{% if m.role == 'tool' %}
{%- if m.tool_call_id is not defined or m.tool_call_id|length != 9 %}{{ raise_exception('length 9!') }}{% endif %}
{{- '[RESULT]' + m.tool_call_id + ':' + m.content }}
{%- elif m.tool_calls %}{% for c in m.tool_calls %}
{%- if c.id is not defined or c.id|length != 9 %}{{ raise_exception('length 9!') }}{% endif %}
{{- '[CALL]' + c.function.name + ':' + c.id + c.function.arguments|tojson }}{% endfor %}
{%- else %}{{ m.content }}{% endif %}{% endfor %}"""


@pytest.mark.parametrize(
    "id", ["NUu96TE6LVWpjxPtBbkSauY8MJV7tsml", "call_1", "toolu_é\ud800", "abc-12345", "abc123456", None]
)
def test_a_template_that_refuses_long_call_ids_gets_short_ones(id: str | None) -> None:
    calls = [
        {"type": "function", "function": {"name": "get", "arguments": "{}"}, **({"id": id + more} if id else {})}
        for more in ("", "2")
    ]
    results = [{"role": "tool", "content": "r", **({"tool_call_id": call["id"]} if id else {})} for call in calls]
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": calls}, *results]
    form = ChatFormat(STRICT_IDS)
    prompts = [
        form.render(read_chat({"messages": said}, ChatDefaults()), lambda *_: None).text
        for said in (messages, [*messages, {"role": "user", "content": "y"}])
    ]
    first, second = re.findall(r":([a-zA-Z0-9]{9})\{\}", prompts[0])
    assert first != second
    assert re.findall(r"\[RESULT\](\w{9}):", prompts[0]) == [first, second]
    assert (first == id) == (id == "abc123456")
    assert prompts[1].startswith(prompts[0])
