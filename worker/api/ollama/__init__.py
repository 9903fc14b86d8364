"""Ollama's API: requests, answers and model listings."""
