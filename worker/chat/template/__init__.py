"""Chat templates: rendering in a sandbox with limits, and detection of what a template supports."""
