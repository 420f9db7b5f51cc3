"""`upmix convert`: weights of a run to other layouts, and of those to a new run."""

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from framework.cli import convert_llm_random
from framework.cli.names import folder_name
from framework.errors import UserError

app = typer.Typer(help="Convert checkpoints to and from Hugging Face transformers and Megatron-Core, from llm-random "
                  "and nano.", no_args_is_help=True)
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

    report = convert.from_hf(folder, _run_path(name, runs_dir), overrides or [])
    print(json.dumps(report) if as_json else _made(report))


@app.command("to-megatron")
def to_megatron(
    source: Annotated[Path, typer.Argument(metavar="RUN|CHECKPOINT", help="run folder, or RUN/checkpoints/step_N")],
    out: Annotated[Path, typer.Argument(metavar="DIR", help="new folder, for Megatron-LM's --load")],
    verify: Annotated[bool, typer.Option("--verify", help="load in Megatron-Core and compare logits")] = False,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "float32",
    spec: Annotated[str, typer.Option(help="layer specification that loads it: te (usual) or local")] = "te",
    step: Annotated[int | None, typer.Option(help="checkpoint to take; default: the newest good one")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a folder that Megatron-LM loads (torch_dist), from a checkpoint of any layout."""
    from framework.convert import megatron
    from framework.surgery import find_source

    report = megatron.to_megatron(find_source(source, step), out, megatron.Options(spec, dtype, verify))
    print(json.dumps(report) if as_json else _told_megatron(report))


@app.command("from-megatron")
def from_megatron(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="of Megatron-LM's --save, or one checkpoint in it")],
    name: Annotated[str, typer.Argument(help="of the new run: a plain name under --runs-dir, or a path")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="of its recipe")] = None,
    runs_dir: Annotated[Path, typer.Option(help="where run folders stand")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Make a run folder with a torch_dist checkpoint of Megatron-LM as its first, for `upmix train ... --resume`."""
    from framework.convert import megatron

    report = megatron.from_megatron(folder, _run_path(name, runs_dir), overrides or [])
    print(json.dumps(report) if as_json else _made(report | {"model_type": report["model_class"]}))


convert_llm_random.register(app)


def _run_path(name: str, runs_dir: Path) -> Path:
    path = Path(name)
    return path.parent / folder_name(path.name, name) if "/" in name else runs_dir / folder_name(name, name)


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


def _told_megatron(report: dict) -> str:
    lines = [f"{report['out']}: {report['target']}, from step {report['step']} of {report['source']}: "
             f"{report['num_tensors']} tensors, {report['num_bytes']:,} bytes of {report['dtype']}, for layer "
             f"specification {report['spec']}", f"tokenizer: {report['tokenizer'] or 'none'}",
             f"arguments of Megatron-LM: {' '.join(report['arguments'])}"]
    lines += [f"caution: {text}" for text in report["cautions"]]
    if (verified := report.get("verified")) is not None:
        lines.append(f"verified: logits in Megatron-Core's own modules, on this CPU, differ by at most "
                     f"{verified['max_abs']:.3g}, {verified['relative']:.3g} of the largest")
    return "\n".join(lines)


def _made(report: dict) -> str:
    run = Path(report["run"])
    lines = [f"{run}: step 0, {report['num_tensors']} tensors of {report['source']}, a {report['model_type']}; pattern "
             f"{report['pattern']}; tokenizer: {report['tokenizer'] or 'none'}"]
    lines += [f"caution: {text}" for text in report.get("cautions", ())]
    if report["has_data"]:
        lines.append(f"next: upmix train {run / 'recipe.yaml'} --name {run.name} --runs-dir {run.parent} --resume")
    else:
        lines.append("it can be generated from, upcycled and converted; to train or evaluate it, convert with "
                     "data.corpus=... and training.steps=...")
    return "\n".join(lines)
