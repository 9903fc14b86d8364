"""The vocabulary of configuration: options, preset files and model sources. Imports nothing of router or worker."""
