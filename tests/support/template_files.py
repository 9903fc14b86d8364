"""Writes chat templates for presets files."""

from __future__ import annotations

from pathlib import Path

import chat_templates

CALLER = chat_templates.HERMES.replace(chat_templates.THOUGHTS, "")
"""A template with tools and without reasoning."""


def with_template_files(presets: str, directory: Path) -> str:
    """Return the presets with the paths of files in place of the words CALLER and THINKER."""
    for word, source in (("CALLER", CALLER), ("THINKER", chat_templates.THINKING)):
        path = directory / f"{word.lower()}.jinja"
        path.write_text(source)
        presets = presets.replace(word, str(path))
    return presets
