"""Anthropic's Messages API: requests, content, tools and answers."""
