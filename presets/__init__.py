"""Configuration: options, presets files and model sources. Imports nothing from router or worker."""
