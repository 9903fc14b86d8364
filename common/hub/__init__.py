"""GGUF files and their sources: headers, file names, the Hugging Face cache and the download client."""
