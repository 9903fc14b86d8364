"""The benchmark: our program and, on request, a reference llama-server, measured in turn on the same models.

`scripts/bench` runs `python -m benchmarks`. Nothing here imports the product: it is measured from outside, by its
command line.
"""
