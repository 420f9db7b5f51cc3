"""`upmix eval RUN`: loss of a run over its validation set."""

import json
from pathlib import Path
from typing import Annotated

import typer

from framework.errors import UserError


def command(
    run: Annotated[Path, typer.Argument(help="run folder")],
    step: Annotated[int | None, typer.Option(help="checkpoint to take; default: the newest good one")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Print validation loss in nats a token and bits a byte, in one process."""
    import torch

    from framework.data import open_data
    from framework.training import evaluate, load_run
    from framework.training.data_state import refuse_other_data
    from framework.training.preconditions import mesh_sizes
    from framework.training.shares import forward_size

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = load_run(run, step, device)
    recipe = found.loaded.recipe
    data = open_data(recipe.data, recipe.model.vocab_size, recipe.training.seed)
    refuse_other_data(data, run)
    validation = data.validation
    if validation.num_windows == 0:
        raise UserError(f"{run}: nothing is held out (data.validation_fraction={recipe.data.validation_fraction})")
    batch_size = forward_size(recipe.data, mesh_sizes(recipe.parallel).batch)
    measured = evaluate(found.model, validation, batch_size, recipe.data.isolate_documents, device)
    if as_json:
        print(json.dumps({"step": found.step, **vars(measured), "tokens": validation.num_tokens}))
    else:
        bits = measured.val_bits_per_byte
        print(f"step {found.step}: validation loss {measured.val_loss:.4f} nats a token"
              + (f", {bits:.4f} bits per byte" if bits is not None else ""))
