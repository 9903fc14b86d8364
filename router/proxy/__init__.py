"""Forward a request to the worker of its model, and relay the response unbuffered."""
