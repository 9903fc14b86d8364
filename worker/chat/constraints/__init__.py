"""Grammars that constrain an answer to tool calls or a response format."""
