"""From a list of messages to a prompt, and from generated text back to a message."""
