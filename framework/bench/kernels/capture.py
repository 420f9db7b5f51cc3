"""Whether a function's forward and backward can be captured in a CUDA graph and give the same when it is replayed."""

import torch

from framework.bench.kernels.case import Case, forward_and_backward, upstream_gradients


def capture_fault(case: Case) -> str | None:
    """Why a case's forward and backward on the current GPU cannot be replayed, in one line; None where they can.

    Capture fails where the host waits for the GPU; a replay differs where it computes with what the host knew then.
    """
    torch.manual_seed(0)
    arguments = case.arguments(torch.device("cuda"), case.check_tokens)
    expected = forward_and_backward(case.run, arguments)
    upstream = upstream_gradients(expected)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what is set up at first is no part of the graph
        forward_and_backward(case.run, arguments, upstream)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            captured = forward_and_backward(case.run, arguments, upstream)
    except RuntimeError as problem:
        return f"{case.config}: cannot be captured: {str(problem).splitlines()[0]}"
    graph.replay()
    same = all(torch.equal(got, wanted) for got, wanted in zip(captured, expected, strict=True))
    return None if same else f"{case.config}: a replay differs from the run that was captured"
