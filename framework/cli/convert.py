"""`upmix convert`: weights of a run to other layouts, and of those to a new run."""

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from framework.cli import convert_llm_random
from framework.cli.imports import AsJson, Name, Overrides, RunsDir, run_path, tell
from framework.errors import UserError

app = typer.Typer(help="Convert checkpoints to and from Hugging Face transformers and Megatron-Core, from llm-random "
                  "and nano.", no_args_is_help=True)
Source = Annotated[Path, typer.Argument(metavar="RUN|CHECKPOINT", help="run folder, or RUN/checkpoints/step_N")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16")]
Step = Annotated[int | None, typer.Option(help="checkpoint to take; default: the newest good one")]
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


@app.command("to-hf")
def to_hf(
    source: Source,
    out: Annotated[Path, typer.Argument(metavar="DIR", help="new folder")],
    target: Annotated[str | None, typer.Option(help="transformers' model_type; default: the first that fits")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="load in transformers and compare logits")] = False,
    dtype: Dtype = "float32",
    identity_attention: Annotated[bool, typer.Option(
        "--identity-attention", help="add a layer of zeros, with which hybrids without attention generate")] = False,
    shard_size: Annotated[str, typer.Option(help="bytes of a file at most, as 500M or 4G")] = "4G",
    step: Step = None,
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
    name: Name, overrides: Overrides = None, runs_dir: RunsDir = Path("runs"), as_json: AsJson = False,
) -> None:
    """Make a run folder with a model of transformers as its first checkpoint, for `upmix train ... --resume`."""
    from framework import convert

    report = convert.from_hf(folder, run_path(name, runs_dir), overrides or [])
    tell(report, report["model_type"], as_json)


@app.command("to-megatron")
def to_megatron(
    source: Source,
    out: Annotated[Path, typer.Argument(metavar="DIR", help="new folder, for Megatron-LM's --load")],
    verify: Annotated[bool, typer.Option("--verify", help="load in Megatron-Core and compare logits")] = False,
    dtype: Dtype = "float32",
    spec: Annotated[str, typer.Option(help="layer specification that loads it: te (usual) or local")] = "te",
    step: Step = None,
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
    name: Name, overrides: Overrides = None, runs_dir: RunsDir = Path("runs"), as_json: AsJson = False,
) -> None:
    """Make a run folder with a torch_dist checkpoint of Megatron-LM as its first, for `upmix train ... --resume`."""
    from framework.convert import megatron

    report = megatron.from_megatron(folder, run_path(name, runs_dir), overrides or [])
    tell(report, report["model_class"], as_json)


convert_llm_random.register(app)


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
