"""Converts engine events to JSON answers and streams, in llama-server's native dialect and in OpenAI's."""
