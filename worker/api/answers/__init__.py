"""Engine events as JSON answers and streams, in llama.cpp's own form and in OpenAI's."""
