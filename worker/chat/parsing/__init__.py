"""Parse generated text incrementally into content, reasoning and tool calls."""
