"""Chat templates: the sandbox, its limits, and what a template can do."""
