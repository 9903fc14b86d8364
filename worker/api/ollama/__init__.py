"""Ollama's API: its requests, answers and model listings."""
