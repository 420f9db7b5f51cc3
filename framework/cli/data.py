"""`upmix data`: prepare a corpus, or look at a prepared one."""

from pathlib import Path
from typing import Annotated

import typer

from framework.cli.text import Malformed

app = typer.Typer(help="Prepare a corpus, or look at a prepared one.", no_args_is_help=True)

SHOWN_TOKENS = 64


@app.command()
def prepare(
    inputs: Annotated[list[str], typer.Argument(help="python_stdlib, or files, folders and globs of text")],
    tokenizer: Annotated[Path, typer.Option(help="a SentencePiece .model or Hugging Face tokenizer.json")],
    name: Annotated[str, typer.Option(help="of the folder, which a recipe's data.corpus can then say")],
    workers: Annotated[int | None, typer.Option(min=1, help="processes; default: one a core")] = None,
    malformed: Annotated[
        Malformed, typer.Option(help="a record that cannot be read: report and skip, or stop")
    ] = Malformed.fail,
    validation_fraction: Annotated[float, typer.Option(min=0, max=0.5, help="share of documents held out")] = 0.05,
    field: Annotated[str, typer.Option(help="of JSON lines and tables")] = "text",
) -> None:
    """Tokenize .txt, .jsonl (.gz, .zst), .parquet, .arrow and source files into Megatron .bin/.idx data sets."""
    from framework.data import Rules, find_corpus, load_tokenizer, prepare_corpus

    prepared = prepare_corpus(
        find_corpus(inputs, name), load_tokenizer(tokenizer), Rules(validation_fraction, field, malformed.value),
        workers=workers,
    )
    typer.echo(str(prepared.folder))
    _show_totals(prepared.manifest)


@app.command()
def show(
    prefix: Annotated[Path, typer.Argument(help="a prepared folder, or the prefix of a .bin/.idx pair")],
    tokenizer: Annotated[Path | None, typer.Option(help="to decode a bare .bin/.idx pair")] = None,
) -> None:
    """Print documents, tokens and bytes of a data set, and its first tokens."""
    from framework.data import TokenStream, is_prepared, load_tokenizer, open_prepared
    from framework.data.indexed import prefix_of

    if is_prepared(prefix):
        prepared = open_prepared(prefix)
        _show_totals(prepared.manifest)
        stream, engine = prepared.train, prepared.tokenizer()
    else:
        stream = TokenStream(prefix_of(prefix))
        engine = load_tokenizer(tokenizer) if tokenizer else None
        typer.echo(f"{stream.num_documents} documents, {stream.num_tokens} tokens of {stream.dtype}")
    first = stream.tokens(0, min(SHOWN_TOKENS, stream.num_tokens))
    typer.echo(f"first tokens: {' '.join(map(str, first))}")
    if engine:
        typer.echo(engine.decode(first))


def _show_totals(manifest) -> None:
    for split in ("train", "validation"):
        totals = getattr(manifest, split)
        ratio = f", {totals.bytes / totals.tokens:.3f} bytes per token" if totals.tokens else ""
        typer.echo(f"{split:<10} {totals.documents} documents, {totals.tokens} tokens, {totals.bytes} bytes{ratio}")
    if manifest.malformed:
        typer.echo(f"{manifest.malformed} malformed records were skipped")
