"""`python -m framework.bench.kernels`, with Triton's compiler on whatever the environment says."""

import os
import sys

os.environ.pop("TRITON_INTERPRET", None)
# Products and sums fuse, as they do by default up to Triton 3.9, which warns that this will change.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

if __name__ == "__main__":
    from framework.bench.kernels.command import main

    sys.exit(main(sys.argv[1:]))
