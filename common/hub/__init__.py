"""GGUF files and where they come from: headers, names, the Hugging Face cache and the download client."""
