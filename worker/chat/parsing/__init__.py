"""Generated text, as it arrives, parsed into content, reasoning and tool calls."""
