"""The router's records of each model: registry, request queue, back-off, exit reasons, events."""
