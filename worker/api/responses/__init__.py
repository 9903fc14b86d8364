"""OpenAI's Responses API: its requests, items, output and streamed events."""
