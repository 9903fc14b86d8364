"""Anthropic's Messages API: its requests, content blocks, tools and answers."""
