"""The HTTP endpoints: parse the JSON request, submit a `Generation` to the engine, render its events as JSON.

One file per dialect. Nothing here interprets tokens.
"""
