"""One process per loaded model: a small inference server with continuous batching on llama-cpp-python."""
