"""The options of the command, which is started as `python -m framework.bench.kernels` and as `upmix bench kernels`."""

FLAGS = {
    "--compile-only": "compile for sm_90 and write docs/; needs no GPU",
    "--check": "fail where a table in docs/ is not of these kernels",
    "--floors": "print an H100's floors; needs no GPU",
    "--json": "print one JSON object",
}
ONLY = "kernels and shapes whose name contains this"
MODES = ("--compile-only", "--check", "--floors")
"""Of these at most one."""
