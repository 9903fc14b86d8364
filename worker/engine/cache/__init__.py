"""KV reuse: slot contents, shared prefixes, the prompt cache in memory and on disk."""
