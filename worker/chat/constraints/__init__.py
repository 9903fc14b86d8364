"""Grammars that hold an answer to tools or to a response format."""
