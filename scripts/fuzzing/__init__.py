"""Random requests for a real gateway, and random files for the readers of GGUF headers and presets files."""
