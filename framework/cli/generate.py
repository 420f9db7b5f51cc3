"""`upmix generate RUN PROMPT`: let a run's model continue a text."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from framework.cli.text import utf8
from framework.errors import UserError


def command(
    run: Annotated[Path, typer.Argument(help="run folder")],
    prompt: Annotated[str, typer.Argument(help="text to continue", callback=utf8)],
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 200,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token")] = 0.8,
    top_k: Annotated[int | None, typer.Option(min=1, help="among the k likeliest")] = None,
    top_p: Annotated[float | None, typer.Option(help="among the likeliest that reach p, above 0, up to 1")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1)] = 0,
    step: Annotated[int | None, typer.Option(help="checkpoint to take; default: the newest good one")] = None,
) -> None:
    """Print the prompt and what follows, token by token, until the model ends the document."""
    import torch

    from framework.model import generate
    from framework.training import load_run
    from framework.training.text import stream_text

    found = load_run(run, step, "cuda" if torch.cuda.is_available() else "cpu")
    if found.tokenizer is None:
        raise UserError(f"{run}: this run has no tokenizer; allowed: runs whose data.tokenizer names one")
    tokenizer = found.tokenizer
    ids = tokenizer.encode(prompt) or [tokenizer.eod]
    tokens = generate(found.model, ids, max_new_tokens, temperature, top_k, top_p, seed, stop=tokenizer.eod)
    sys.stdout.write(prompt)
    for piece in stream_text(tokenizer, ids, tokens):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
