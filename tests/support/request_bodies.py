"""A valid request with many fields for each endpoint of a worker, from which tests make wrong ones."""

from __future__ import annotations

from typing import Any

SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "string", "pattern": "^a+$"},
        "b": {"type": "array", "items": {"$ref": "#/$defs/n"}, "minItems": 1},
        "c": {"anyOf": [{"enum": ["x", 1, None]}, {"type": "integer", "minimum": 1}]},
    },
    "required": ["a"],
    "$defs": {"n": {"type": "number"}},
}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "x"}'}}
TURNS = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    {"role": "assistant", "content": "", "reasoning_content": "r", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "name": "f", "content": "t"},
]
SAMPLING = {
    "temperature": 0.5,
    "top_k": 4,
    "top_p": 0.9,
    "min_p": 0.1,
    "typical_p": 0.9,
    "xtc_probability": 0.1,
    "mirostat": 1,
    "adaptive_target": 0.5,
    "adaptive_decay": 0.5,
    "min_keep": 1,
    "seed": 1,
    "ignore_eos": True,
    "repeat_last_n": 4,
    "repeat_penalty": 1.1,
    "dry_multiplier": 0.5,
    "dry_sequence_breakers": ["\n"],
    "logit_bias": [[1, 1.0], ["a", False]],
    "samplers": ["top_k"],
    "stop": ["zz"],
    "n_probs": 2,
    "n": 1,
    "grammar": 'root ::= "a"*',
    "grammar_lazy": True,
    "grammar_triggers": [{"type": 1, "value": "ab cd"}],
    "lora": [{"id": 0, "scale": 1.0}],
    "preserved_tokens": ["a"],
    "response_fields": ["content"],
    "id_slot": 0,
    "n_keep": 1,
    "n_discard": 1,
    "n_indent": 1,
    "n_cache_reuse": 1,
    "t_max_predict_ms": 1000,
    "stream": False,
    "thinking_budget_tokens": 1,
    "reasoning_control": True,
    "stream_options": {"include_usage": True},
}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
BLOCKS = [
    {"type": "thinking", "thinking": "t", "signature": "s"},
    {"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}},
]
ITEMS = [
    {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
    {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "t"}], "encrypted_content": "eA=="},
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c", "output": "o"},
]
BODIES: list[tuple[str, Any]] = [
    ("/completion", {"prompt": ["a", [1, "b"], {"prompt_string": "a"}], "n_predict": 1}),
    ("/completion", {"prompt": "a", "n_predict": 1, **SAMPLING}),
    ("/completion", {"prompt": "a", "n_predict": 1, "json_schema": SCHEMA}),
    ("/v1/completions", {"prompt": "a", "max_tokens": 1, "logprobs": 2, "logit_bias": {"5": 1}, "echo": True}),
    ("/v1/chat/completions", {"messages": TURNS, "max_tokens": 1, "tools": [TOOL], "tool_choice": "auto"}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [IMAGE]}], "max_tokens": 1}),
    (
        "/v1/chat/completions",
        {
            "messages": TURNS[:2],
            "max_tokens": 1,
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
            "chat_template_kwargs": {"enable_thinking": True},
            "reasoning_effort": "low",
        },
    ),
    (
        "/v1/messages",
        {
            "max_tokens": 1,
            "system": [{"type": "text", "text": "s"}],
            "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": BLOCKS},
                         {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "r"}]}],
            "tools": [{"name": "f", "input_schema": SCHEMA}],
            "tool_choice": {"type": "auto"},
            "thinking": {"type": "disabled"},
            "stop_sequences": ["zz"],
            "metadata": {"user_id": "u"},
        },
    ),
    (
        "/v1/responses",
        {
            "input": ITEMS,
            "max_output_tokens": 1,
            "instructions": "i",
            "tools": [{"type": "function", "name": "f", "parameters": SCHEMA}],
            "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
            "text": {"format": {"type": "text"}},
            "reasoning": {"effort": "low", "summary": "auto"},
            "include": ["message.output_text.logprobs"],
            "metadata": {"a": "b"},
            "store": False,
        },
    ),
    (
        "/api/chat",
        {
            "messages": [{"role": "user", "content": "x", "images": []},
                         {"role": "assistant", "content": "", "tool_calls": [{"function": CALL["function"]}]},
                         {"role": "tool", "content": "c", "tool_name": "f"}],
            "tools": [TOOL],
            "options": {"num_predict": 1, "stop": ["z"], "temperature": 0.5, "seed": 1},
            "stream": False,
            "keep_alive": "5m",
        },
    ),
    ("/api/generate", {"prompt": "x", "context": [1], "format": "json", "stream": False}),
    ("/infill", {"input_prefix": "a", "input_suffix": "b", "input_extra": [{"filename": "f", "text": "t"}]}),
    ("/tokenize", {"content": ["a", 1], "with_pieces": True}),
    ("/detokenize", {"tokens": [1, 2]}),
    ("/lora-adapters", [{"id": 0, "scale": 1.0}]),
    ("/v1/streams/lookup", {"conversation_ids": ["a"]}),
    ("/v1/chat/completions/control", {"id": "x", "action": "reasoning_end"}),
]  # fmt: skip
