"""The worker: an inference server for one model with continuous batching on llama-cpp-python; one process per model."""
