"""The benchmark: measures llama-corral and, if requested, a reference llama-server in turn with the same models.

`scripts/bench` runs `python -m benchmarks`. Nothing here imports llama-corral: it is measured from outside, as a
program.
"""
