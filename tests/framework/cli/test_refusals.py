"""The roof: whatever is refused is one line and exit code 2, and whatever is stopped clears up."""

import os
import signal

import pytest

from framework.cli import main
from framework.data import find_corpus, train_tokenizer

RECIPE = """
model: {pattern: "*", d_model: 16, vocab_size: 300, attention: {num_heads: 2}}
data: {corpus: corpus.jsonl, seq_len: 16, batch_size: 2, validation_fraction: 0.2}
training: {steps: 1}
"""
LONG = "n" * 255


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus, a recipe, a tokenizer, and what is none of them."""
    folder = tmp_path_factory.mktemp("refusals")
    (folder / "corpus.jsonl").write_text("".join(f'{{"text": "{n} words and {n * 7} more"}}\n' for n in range(200)))
    (folder / "tiny.yaml").write_text(RECIPE)
    (folder / "empty.txt").touch()
    (folder / "empty.model").touch()
    train_tokenizer(find_corpus([str(folder / "corpus.jsonl")]), 300, folder / "good.model", report=pytest.fail)
    (folder / "other").mkdir()
    (folder / "other" / "file").touch()
    return folder


@pytest.fixture
def give(folder, monkeypatch, capfd):
    """Give a command in this process: (exit code, standard output, standard error)."""

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(folder)
        monkeypatch.setattr("sys.argv", ["upmix", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, *capfd.readouterr()

    return command


def listing(folder):
    return sorted(map(str, folder.rglob("*")))


TRAIN = ("train", "tiny.yaml")
TOKENIZER = ("tokenizer", "train", "corpus.jsonl", "--vocab-size", "300")


@pytest.mark.parametrize(("arguments", "said"), [
    ((*TRAIN, "--name", "../x"), "a plain name"), ((*TRAIN, "--name", ""), "a plain name"),
    ((*TRAIN, "--name", "a\nb"), "a plain name"), ((*TRAIN, "--name", LONG), "a plain name"),
    ((*TRAIN, "--runs-dir", ".", "--name", "empty.txt", "--resume"), "no run"),
    ((*TRAIN, "--runs-dir", ".", "--name", "other", "--resume"), "no run"),
    ((*TRAIN, f"data.corpus={LONG}"), "File name too long"), ((*TRAIN, "data.corpus=no"), "data.corpus: corpus no"),
    ((*TRAIN, "data.tokenizer=no.model"), "data.tokenizer: tokenizer no.model"),
    ((*TRAIN, "data.tokenizer=good.model", "model.vocab_size=299"), "allowed: 300 or more"),
    ((*TRAIN, "model.vocab_size=400000000000"), "at most"), (("show", f"{LONG}.yaml"), "File name too long"),
    ((*TOKENIZER, "--out", "/proc/none/a.model"), "cannot be written"),
    ((*TOKENIZER, "--out", "empty.txt/a.model"), "cannot be written"),
    ((*TOKENIZER, "--out", "a.model", "--field", "nope"), "corpus.jsonl:1: no field"),
    (("tokenizer", "train", "empty.txt", "--vocab-size", "300", "--out", "a.model"), "no text to train on"),
    (("tokenizer", "show", "empty.model"), "not a SentencePiece model"),
    (("tokenizer", "show", "good.model", "\udcff"), "not UTF-8"),
    (("data", "prepare", "corpus.jsonl", "--tokenizer", "good.model", "--name", LONG), "a plain one"),
    (("data", "prepare", "corpus.jsonl", "--tokenizer", "good.model", "--name", "q", "--field", "x"), "no field 'x'"),
    (("laws", "plot", "joint", "flops=1e19..1e22", "--out", "x.xyz"), "no name of a picture"),
    (("laws", "plot", "joint", "flops=1e19..1e22", "--out", "/proc/none/x.png"), "cannot be written"),
    (("laws", "optimum", "joint", "flops=1e20", "num_experts=4", "--recipe", "tiny.yaml"), "is there already"),
    (("coordcheck", "quickstart", "--plot", "cc.xyz"), "no name of a picture"),
    (("coordcheck", "quickstart", "model.d_model=32"), "--widths sets this field already"),
    (("lrtransfer", "quickstart", "optim.lr=1e-3"), "--lrs sets this field already"),
    (("lrtransfer", "quickstart", "--widths", "64,64"), "two or more different"),
])
def test_a_mistake_is_one_line_and_leaves_nothing(give, folder, arguments, said):
    before = listing(folder)
    code, out, error = give(*arguments)
    assert code == 2 and out == "" and error.count("\n") == 1 and said in error, error
    assert "allowed: " in error or "no field" in error
    assert listing(folder) == before


@pytest.mark.parametrize("root", ["/proc/none", "empty.txt"])
def test_data_that_cannot_be_written(give, folder, monkeypatch, root):
    monkeypatch.setenv("UPMIX_DATA", root)
    for arguments in (TRAIN, ("data", "prepare", "corpus.jsonl", "--tokenizer", "good.model", "--name", "q")):
        code, _, error = give(*arguments)
        assert code == 2 and error.count("\n") == 1 and "$UPMIX_DATA" in error, error


def test_skipped_records_are_told_up_to_a_number(give, folder):
    code, _, error = give(*TOKENIZER, "--out", "a.model", "--field", "nope", "--malformed", "skip")
    lines = error.splitlines()
    assert code == 2 and len(lines) == 22 and "further" in lines[20] and "no text to train on" in lines[21]


@pytest.mark.parametrize(("variables", "said"), [
    ({"RANK": "x", "WORLD_SIZE": "2"}, "$RANK is 'x'; allowed: a whole number from 0 to 1"),
    ({"RANK": "5", "WORLD_SIZE": "2"}, "$RANK is '5'"), ({"RANK": "0", "WORLD_SIZE": "0"}, "$WORLD_SIZE is '0'"),
    ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "-1"}, "$LOCAL_RANK is '-1'"),
    ({"RANK": "1", "WORLD_SIZE": "2"}, "$MASTER_ADDR is not set"),
    ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "x"}, "$MASTER_PORT is 'x'"),
])
def test_wrong_places_are_one_line(give, monkeypatch, variables, said):
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code, out, error = give(*TRAIN)
    assert code == 2 and out == "" and error.count("\n") == 1 and said in error, error


def test_what_a_message_quotes_cannot_command_the_terminal(tmp_path, give):
    code, _, error = give("convert", "from-hf", tmp_path / "\x1b]0;title\x07\x9b31m", "new", "--runs-dir", tmp_path)
    assert code == 2 and error.rstrip("\n").isprintable() and "title" in error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_stopped_preparation_says_so_and_leaves_nothing(give, tmp_path, monkeypatch, number):
    def write_a_little_and_be_stopped(folder, *rest):
        (folder / "train.bin").touch()
        os.kill(os.getpid(), number)

    monkeypatch.setenv("UPMIX_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("framework.data.prepare._write_splits", write_a_little_and_be_stopped)
    before = signal.getsignal(number)
    code, out, error = give("data", "prepare", "corpus.jsonl", "--tokenizer", "good.model", "--name", "a")
    assert (code, out, error) == (128 + number, "", f"upmix: stopped by {number.name}\n")
    assert not (tmp_path / "data").exists() and signal.getsignal(number) is before
    code, out, error = give(*TRAIN, "data.tokenizer=good.model", "--runs-dir", tmp_path / "runs")
    assert (code, out, error) == (128 + number, "", f"upmix: stopped by {number.name} before the first step\n")
    assert not (tmp_path / "data").exists() and not (tmp_path / "runs").exists()
