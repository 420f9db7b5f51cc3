"""`upmix tokenizer`: train a tokenizer, or look at one."""

from pathlib import Path
from typing import Annotated

import typer

from framework.cli.text import Malformed, utf8

app = typer.Typer(help="Train a tokenizer, or look at one.", no_args_is_help=True)


@app.command()
def train(
    inputs: Annotated[list[str], typer.Argument(help="python_stdlib, or files, folders and globs of text")],
    vocab_size: Annotated[int, typer.Option(min=1, help="entries of the vocabulary")],
    out: Annotated[Path, typer.Option(help="file to write, ending in .model")],
    field: Annotated[str, typer.Option(help="of JSON lines and tables")] = "text",
    malformed: Annotated[
        Malformed, typer.Option(help="a record that cannot be read: report and skip, or stop")
    ] = Malformed.fail,
    validation_fraction: Annotated[
        float, typer.Option(min=0, max=0.5, help="share of documents held out, which the tokenizer never sees")
    ] = 0.05,
) -> None:
    """Train a SentencePiece tokenizer that gives back every text exactly (byte-pair encoding with byte fallback)."""
    from framework.data import Skipped, find_corpus, refuse, train_tokenizer
    from framework.errors import UserError

    if out.suffix != ".model":
        raise UserError(f"--out {out}: given another suffix; allowed: .model, as SentencePiece has it")
    report = refuse if malformed is Malformed.fail else Skipped(lambda message: typer.echo(message, err=True))
    tokenizer = train_tokenizer(
        find_corpus(inputs), vocab_size, out, field=field, validation_fraction=validation_fraction, report=report,
    )
    typer.echo(f"{out}: {tokenizer.vocab_size} entries")


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="a SentencePiece .model or Hugging Face tokenizer.json")],
    text: Annotated[str | None, typer.Argument(help="a text to encode", callback=utf8)] = None,
) -> None:
    """Print what a tokenizer is, and the tokens of a text."""
    from framework.data import load_tokenizer

    tokenizer = load_tokenizer(file)
    typer.echo(f"entries          {tokenizer.vocab_size}")
    typer.echo(f"end of document  {tokenizer.eod} {tokenizer.piece(tokenizer.eod)!r}")
    typer.echo(f"sha256           {tokenizer.fingerprint}")
    if text is not None:
        tokens = tokenizer.encode(text)
        typer.echo(f"tokens           {len(tokens)} for {len(text.encode())} bytes")
        for token in tokens:
            typer.echo(f"{token:>8} {tokenizer.piece(token)!r}")
