"""Encodes images, audio and video into embeddings for the model."""
