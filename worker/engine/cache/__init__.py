"""Reuse of KV caches: slot contents, shared prefixes, and the prompt cache in host memory and on disk."""
