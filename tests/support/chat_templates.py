"""Chat templates of well-known model families, reduced to the format of an assistant's turn."""

from __future__ import annotations

_HEAD = """\
{%- if tools %}TOOLS{% for tool in tools %} {{ tool | tojson }}{% endfor %}
{% endif %}
{%- for m in messages %}
{%- if m.role != 'assistant' %}BEGIN_{{ m.role }}
{{ m.content }}<|end|>
{% else %}BEGIN_assistant
"""
_TAIL = """<|end|>
{% endif %}{% endfor %}
{%- if add_generation_prompt %}BEGIN_assistant
OPENING{% endif %}"""

THOUGHTS = """\
{% if m.reasoning_content %}<think>
{{ m.reasoning_content }}
</think>

{% endif %}"""


def _template(turn: str, opening: str = "") -> str:
    opening = opening.replace("BEGIN", "<|").replace("END", "|>")
    return (_HEAD + turn + _TAIL).replace("BEGIN_", "<|role|>").replace("OPENING", opening)


HERMES = _template(
    THOUGHTS
    + """{{ m.content }}{% for c in m.tool_calls or [] %}
<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>{% endfor %}"""
)
THINKING = _template(
    THOUGHTS
    + """{{ m.content }}{% for c in m.tool_calls or [] %}
<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>{% endfor %}""",
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}",
)
LLAMA = _template(
    """{% if m.tool_calls %}{% for c in m.tool_calls %}\
{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}{% endfor %}\
{% else %}{{ m.content }}{% endif %}"""
)
NEMO = _template(
    """{{ m.content }}{% if m.tool_calls %}[TOOL_CALLS][{% for c in m.tool_calls %}\
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, "id": "{{ c.id }}"}\
{% if not loop.last %}, {% endif %}{% endfor %}]{% endif %}"""
)
SMALL = _template(
    """{{ m.content }}{% for c in m.tool_calls or [] %}\
[TOOL_CALLS]{{ c.function.name }}[CALL_ID]{{ c.id }}[ARGS]{{ c.function.arguments | tojson }}{% endfor %}"""
)
CODER = _template(
    THOUGHTS
    + """{{ m.content }}{% for c in m.tool_calls or [] %}
<tool_call>
<function={{ c.function.name }}>
{% for k, v in c.function.arguments.items() %}<parameter={{ k }}>
{{ v if v is string else v | tojson }}
</parameter>
{% endfor %}</function>
</tool_call>{% endfor %}"""
)
GLM = _template(
    THOUGHTS
    + """{{ m.content }}{% for c in m.tool_calls or [] %}
<tool_call>{{ c.function.name }}
{% for k, v in c.function.arguments.items() %}<arg_key>{{ k }}</arg_key>
<arg_value>{{ v if v is string else v | tojson }}</arg_value>
{% endfor %}</tool_call>{% endfor %}"""
)
MINIMAX = _template(
    THOUGHTS
    + """{{ m.content }}{% if m.tool_calls %}
<mm:tool_call>
{% for c in m.tool_calls %}<invoke name="{{ c.function.name }}">
{% for k, v in c.function.arguments.items() %}\
<parameter name="{{ k }}">{{ v if v is string else v | tojson }}</parameter>
{% endfor %}</invoke>
{% endfor %}</mm:tool_call>{% endif %}"""
)
DSML = _template(
    """{% set dsml_token = 'DSML' %}"""
    + THOUGHTS
    + """{{ m.content }}{% if m.tool_calls %}
<DSML:calls>
{% for c in m.tool_calls %}<DSML:invoke name="{{ c.function.name }}">
{% for k, v in c.function.arguments.items() %}\
<DSML:parameter name="{{ k }}" string="{{ 'true' if v is string else 'false' }}">\
{{ v if v is string else v | tojson }}</DSML:parameter>
{% endfor %}</DSML:invoke>
{% endfor %}</DSML:calls>{% endif %}"""
)
DEEPSEEK = _template(
    THOUGHTS
    + """{{ m.content }}{% if m.tool_calls %}<｜calls▁begin｜>{% for c in m.tool_calls %}\
<｜call▁begin｜>{{ c.function.name }}<｜sep｜>{{ c.function.arguments | tojson }}<｜call▁end｜>\
{% endfor %}<｜calls▁end｜>{% endif %}"""
)
FUNCTIONARY = _template(
    """{{ m.content }}{% for c in m.tool_calls or [] %}\
<function={{ c.function.name }}>{{ c.function.arguments | tojson }}</function>{% endfor %}"""
)
KIMI = _template(
    THOUGHTS
    + """{{ m.content }}{% if m.tool_calls %}<|tool_calls_section_begin|>{% for c in m.tool_calls %}\
<|tool_call_begin|>{{ c.id }}<|tool_call_argument_begin|>{{ c.function.arguments | tojson }}<|tool_call_end|>\
{% endfor %}<|tool_calls_section_end|>{% endif %}"""
)
COMMAND = _template(
    """{% if m.reasoning_content %}<|START_THINKING|>{{ m.reasoning_content }}<|END_THINKING|>{% endif %}\
{% if m.tool_calls %}<|START_ACTION|>[{% for c in m.tool_calls %}
    {"tool_call_id": "{{ c.id }}", "tool_name": "{{ c.function.name }}", \
"parameters": {{ c.function.arguments | tojson }}}{% if not loop.last %},{% endif %}{% endfor %}
]<|END_ACTION|>{% else %}<|START_RESPONSE|>{{ m.content }}<|END_RESPONSE|>{% endif %}"""
)
APERTUS = _template(
    """{{ m.content }}{% if m.tool_calls %}<|tools_prefix|>[{% for c in m.tool_calls %}\
{"{{ c.function.name }}": {{ c.function.arguments | tojson }}}{% if not loop.last %}, {% endif %}\
{% endfor %}]<|tools_suffix|>{% endif %}"""
)
WRAPPED = _template(
    """{{ m.content }}{% if m.tool_calls %}<calls>{% for c in m.tool_calls %}
{"type": "function", "function": {"name": "{{ c.function.name }}", \
"arguments": {{ c.function.arguments | tojson }}}}{% endfor %}
</calls>{% endif %}"""
)

GEMMA = _template(
    """{% macro write(value) -%}
{%- if value is string %}<|"|>{{ value }}<|"|>
{%- elif value is mapping %}{{ '{' }}{% for k, v in value | dictsort %}{{ k }}:{{ write(v) }}\
{% if not loop.last %},{% endif %}{% endfor %}{{ '}' }}
{%- elif value is sequence %}[{% for v in value %}{{ write(v) }}{% if not loop.last %},{% endif %}{% endfor %}]
{%- else %}{{ value | tojson }}{% endif %}{%- endmacro %}
{% if m.reasoning_content %}<|channel>thought
{{ m.reasoning_content }}
<channel|>{% endif %}{{ m.content }}{% for c in m.tool_calls or [] %}\
<|tool_call>call:{{ c.function.name }}{{ write(c.function.arguments) }}<tool_call|>{% endfor %}""",
    "<|channel>thought\n<channel|>",
)
MINIMAX3 = _template(
    """{% set ns = ']<]minimax[>[' %}
{% macro write(value) -%}
{%- if value is string %}{{ value }}
{%- elif value is mapping %}{% for k, v in value.items() %}{{ ns }}<{{ k }}>{{ write(v) }}{{ ns }}</{{ k }}>{% endfor %}
{%- elif value is sequence %}{% for v in value %}{{ ns }}<item>{{ write(v) }}{{ ns }}</item>{% endfor %}
{%- else %}{{ value | tojson }}{% endif %}{%- endmacro %}
{% if m.reasoning_content %}<mm:think>{{ m.reasoning_content }}</mm:think>{% endif %}{{ m.content }}\
{% if m.tool_calls %}{{ ns }}<tool_call>
{% for c in m.tool_calls %}{{ ns }}<invoke name="{{ c.function.name }}">\
{{ write(c.function.arguments) }}{{ ns }}</invoke>
{% endfor %}{{ ns }}</tool_call>{% endif %}"""
)
KIMI3 = _template(
    """{% if m.reasoning_content %}<|open|>think<|sep|>{{ m.reasoning_content }}<|close|>think<|sep|>{% endif %}\
<|open|>response<|sep|>{{ m.content }}<|close|>response<|sep|>\
{% if m.tool_calls %}<|open|>tools<|sep|>{% for c in m.tool_calls %}\
<|open|>call tool="{{ c.function.name }}" index="{{ loop.index }}"<|sep|>\
{% for k, v in c.function.arguments.items() %}<|open|>argument key="{{ k }}" \
type="{{ 'string' if v is string else 'number' if v is number else 'array' }}"<|sep|>\
{{ v if v is string else v | tojson }}<|close|>argument<|sep|>{% endfor %}<|close|>call<|sep|>{% endfor %}\
<|close|>tools<|sep|>{% endif %}<|close|>message<|sep|>""",
    "<|open|>think<|sep|><|close|>think<|sep|>",
)
MUSE = _template(
    """{% if m.reasoning_content %} to=self<|message|>{{ m.reasoning_content }}<|eom|><|start|>assistant{% endif %}\
{% if m.content %} to=user<|message|>{{ m.content }}{% endif %}{% for c in m.tool_calls or [] %}\
{% if m.content or not loop.first %}<|eom|><|start|>assistant{% endif %} to={{ c.function.name }}<|message|>\
<atem:function_calls>
<atem:invoke name="{{ c.function.name }}">
{% for k, v in c.function.arguments.items() %}\
<atem:parameter name="{{ k }}">{{ v if v is string else v | tojson }}</atem:parameter>
{% endfor %}</atem:invoke>
</atem:function_calls>{% endfor %}""",
    " to=self<|message|><|eom|>",
)
SOLAR = _template(
    """{% if m.reasoning_content %}<|think|>{{ m.reasoning_content }}<|end|><|begin|>assistant{% endif %}\
{% if m.tool_calls %}<|tool_calls|>{% for c in m.tool_calls %}<|tool_call:begin|>{{ c.id }}\
<|tool_call:name|>{{ c.function.name }}<|tool_call:args|>{{ c.function.arguments | tojson }}<|tool_call:end|>\
{% endfor %}<|calls|>{% else %}<|content|>{{ m.content }}{% endif %}""",
    "<|think|><|end|>",
)
CDATA = _template(
    THOUGHTS
    + """{{ m.content }}{% for c in m.tool_calls or [] %}
<function name="{{ c.function.name }}">{% for k, v in c.function.arguments.items() %}<param name="{{ k }}">\
{{ '<![CDATA[' + v + ']]>' if v is string and ('<' in v or '\\n' in v) else v }}</param>{% endfor %}</function>\
{% endfor %}"""
)

LFM = _template("{# <|tool_list_start|> #}{{ m.content }}")
GPT_OSS = """\
{%- for m in messages %}{% if m.role == 'assistant' %}
{%- if m.thinking %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}
{%- if m.content %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>{% endif %}
{%- else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}
{%- if add_generation_prompt %}<|start|>assistant{% endif %}"""

ALL = {
    name.lower(): source
    for name, source in dict(globals()).items()
    if name.isupper() and not name.startswith("_") and name not in ("THOUGHTS", "GPT_OSS") and isinstance(source, str)
}
