"""Applies llama.cpp's built-in chat templates, for `--no-jinja`. Thread-safe."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from .llama import C


def apply_builtin_template(
    template: str, messages: Sequence[tuple[str, str]], add_generation_prompt: bool
) -> str | None:
    """Return the prompt for (role, content) messages. None: llama.cpp knows neither `template`'s name nor its text."""
    pairs = [(role.encode(), content.encode("utf-8", "replace")) for role, content in messages]
    array = (C.llama_chat_message * len(pairs))(*pairs)
    room = 256 + 2 * sum(len(role) + len(content) for role, content in pairs)
    while True:
        text = ctypes.create_string_buffer(room)
        n = C.llama_chat_apply_template(template.encode(), array, len(pairs), add_generation_prompt, text, room)
        if n < 0:
            return None
        if n <= room:
            return text.raw[:n].decode("utf-8", "replace")
        room = n
