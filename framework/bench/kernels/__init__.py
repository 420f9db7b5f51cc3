"""The kernels judged: compiled for a GPU that need not be there, and timed on one that is.

Runs on torch, triton and numpy alone, as machines with GPUs may have no network: `python -m framework.bench.kernels`.
Triton's interpreter must be off before Triton is imported, so that nothing here is imported with the package.
"""
