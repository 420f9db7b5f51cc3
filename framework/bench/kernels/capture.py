"""Whether a function's forward and backward can be captured in a CUDA graph and give the same when it is replayed."""

import torch

from framework.bench.kernels.case import Case, forward_and_backward, upstream_gradients


def capture_fault(case: Case) -> str | None:
    """Why a case's forward and backward on the current GPU cannot be replayed, in one line; None where they can.

    Capture fails where the host waits for the GPU; a replay differs where it computes with what the host knew then.
    """
    torch.manual_seed(0)
    side = torch.cuda.Stream()
    # All of it on one stream: a leaf's part in a graph of autograd, made on another, would have the capture wait for
    # that one. The first runs set up what is no part of the graph.
    with torch.cuda.stream(side):
        arguments = case.arguments(torch.device("cuda"), case.check_tokens)
        results = forward_and_backward(case.run, arguments)
        upstream = upstream_gradients(results)
        expected = [result.detach().clone() for result in results]
        del results
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=side):
            captured = forward_and_backward(case.run, arguments, upstream)
    except RuntimeError as problem:
        return f"{case.config}: cannot be captured: {str(problem).splitlines()[0]}"
    graph.replay()
    same = all(torch.equal(got, wanted) for got, wanted in zip(captured, expected, strict=True))
    return None if same else f"{case.config}: a replay differs from the run that was captured"
