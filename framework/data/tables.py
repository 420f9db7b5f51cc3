"""A text column of Parquet and Arrow files, in batches."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from framework.errors import UserError

BATCH_ROWS = 1024


def table_texts(path: Path, field: str) -> Iterator[tuple[list[object], int]]:
    """Values of the column `field` batch by batch, each with the bytes of the file read so far (estimated by rows).

    Raises UserError, naming the file, if it cannot be read or has no such column.
    """
    import pyarrow

    try:
        yield from _parquet_texts(path, field) if path.suffix == ".parquet" else _arrow_texts(path, field)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as {path.suffix[1:]}: {error}") from error


def _parquet_texts(path: Path, field: str) -> Iterator[tuple[list[object], int]]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as table:
        _check_column(path, field, table.schema_arrow.names)
        num_bytes, done = path.stat().st_size, 0
        for batch in table.iter_batches(BATCH_ROWS, columns=[field]):
            done += batch.num_rows
            yield batch.column(0).to_pylist(), num_bytes * done // max(1, table.metadata.num_rows)


def _arrow_texts(path: Path, field: str) -> Iterator[tuple[list[object], int]]:
    import pyarrow

    with closing(pyarrow.memory_map(str(path))) as file:
        for batch in _record_batches(file):
            _check_column(path, field, batch.schema.names)
            yield batch.column(field).to_pylist(), file.tell()


def _record_batches(file):
    """Batches of either layout of Arrow's interprocess format; `datasets.save_to_disk` writes the stream."""
    import pyarrow

    try:
        reader = pyarrow.ipc.open_file(file)
    except pyarrow.ArrowInvalid:
        file.seek(0)
        yield from pyarrow.ipc.open_stream(file)
        return
    for number in range(reader.num_record_batches):
        yield reader.get_batch(number)


def _check_column(path: Path, field: str, names: list[str]) -> None:
    if field not in names:
        raise UserError(f"{path}: no column '{field}'; there are: {', '.join(names)}")
