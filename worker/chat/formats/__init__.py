"""How a template's model writes content, reasoning and tool calls, and how that is detected."""
