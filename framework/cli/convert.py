"""`upmix convert to-hf|from-hf`: a run's weights to Hugging Face transformers, and theirs to a new run."""

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from framework.cli.names import folder_name
from framework.errors import UserError

app = typer.Typer(help="Convert checkpoints to and from Hugging Face transformers.", no_args_is_help=True)
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


@app.command("to-hf")
def to_hf(
    source: Annotated[Path, typer.Argument(metavar="RUN|CHECKPOINT", help="run folder, or RUN/checkpoints/step_N")],
    out: Annotated[Path, typer.Argument(metavar="DIR", help="new folder")],
    target: Annotated[str | None, typer.Option(help="transformers' model_type; default: the first that fits")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="load in transformers and compare logits")] = False,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "float32",
    identity_attention: Annotated[bool, typer.Option(
        "--identity-attention", help="add a layer of zeros, with which hybrids without attention generate")] = False,
    shard_size: Annotated[str, typer.Option(help="bytes of a file at most, as 500M or 4G")] = "4G",
    step: Annotated[int | None, typer.Option(help="checkpoint to take; default: the newest good one")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a folder that transformers loads, from a checkpoint of any layout."""
    from framework import convert
    from framework.surgery import find_source

    options = convert.Options(target, dtype, _bytes(shard_size), verify, identity_attention)
    report = convert.to_hf(find_source(source, step), out, options)
    print(json.dumps(report) if as_json else _told(report))


@app.command("from-hf")
def from_hf(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="with config.json and safetensors files")],
    name: Annotated[str, typer.Argument(help="of the new run: a plain name under --runs-dir, or a path")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="of its recipe")] = None,
    runs_dir: Annotated[Path, typer.Option(help="where run folders stand")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Make a run folder with a model of transformers as its first checkpoint, for `upmix train ... --resume`."""
    from framework import convert

    path = Path(name)
    path = path.parent / folder_name(path.name, name) if "/" in name else runs_dir / folder_name(name, name)
    report = convert.from_hf(folder, path, overrides or [])
    print(json.dumps(report) if as_json else _made(report))


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+)([KMG]?)B?", text.strip().upper())
    if found is None or not int(found[1]):
        raise UserError(f"--shard-size {text}: no size; allowed: bytes, as 500M or 4G")
    return int(found[1]) * UNITS[found[2]]


def _told(report: dict) -> str:
    files = report["files"]
    lines = [f"{report['out']}: {report['target']}, from step {report['step']} of {report['source']}: "
             f"{report['num_tensors']} tensors, {report['num_bytes']:,} bytes of {report['dtype']} in {len(files)} "
             f"file{'s' if len(files) > 1 else ''}", f"tokenizer: {report['tokenizer']}"]
    lines += [f"caution: {text}" for text in report["cautions"]]
    if (verified := report.get("verified")) is not None:
        lines.append(f"verified: logits in transformers differ by at most {verified['max_abs']:.3g}, "
                     f"{verified['relative']:.3g} of the largest")
    return "\n".join(lines)


def _made(report: dict) -> str:
    run = Path(report["run"])
    lines = [f"{run}: step 0, {report['num_tensors']} tensors of {report['source']}, a {report['model_type']}; pattern "
             f"{report['pattern']}; tokenizer: {report['tokenizer'] or 'none'}"]
    if report["has_data"]:
        lines.append(f"next: upmix train {run / 'recipe.yaml'} --name {run.name} --runs-dir {run.parent} --resume")
    else:
        lines.append("it can be generated from, upcycled and converted; to train or evaluate it, convert with "
                     "data.corpus=... and training.steps=...")
    return "\n".join(lines)
