"""Tokens in, tokens out: the llama context, its slots and the scheduler. Knows nothing of HTTP or JSON."""
