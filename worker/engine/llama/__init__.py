"""Thin wrappers of llama.cpp's objects: model, context, vocabulary, batch, devices."""
