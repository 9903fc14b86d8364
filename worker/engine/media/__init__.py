"""Images, audio and video turned into embeddings for the model."""
