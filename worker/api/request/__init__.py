"""Validates the fields of a request and converts them to the engine's parameters."""
