"""Convert a list of messages to a prompt, and generated text back to a message."""
