"""Fields of a request, checked and turned into what the engine takes."""
