"""OpenAI's Responses API: requests, items, output and streamed events."""
