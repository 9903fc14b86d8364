"""The state that the router has of each model: registry, request queue, back-off, exit reasons, events."""
