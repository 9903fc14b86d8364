"""Forwards a request to the worker of its model and relays the answer unbuffered."""
