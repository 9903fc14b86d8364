"""Thin wrappers around llama.cpp's objects: model, context, vocabulary, batch, devices."""
