import json


def test_from_text_to_a_data_set_by_the_command_line(upmix, corpus_folder, data_root, tmp_path):
    model = tmp_path / "a.model"
    assert upmix("tokenizer", "train", corpus_folder, "--vocab-size", 500, "--out", model)[:2] == (
        0, f"{model}: 500 entries\n")
    code, output, _ = upmix("tokenizer", "show", model, "def value")
    assert code == 0 and "entries          500" in output and "for 9 bytes" in output
    code, output, _ = upmix("data", "prepare", corpus_folder, "--tokenizer", model, "--name", "mine", "--workers", 1)
    folder = output.splitlines()[0]
    totals = json.loads(open(f"{folder}/manifest.json").read())["train"]
    counts = f"{totals['documents']} documents, {totals['tokens']} tokens"
    assert code == 0 and f"{counts}, {totals['bytes']} bytes" in output
    code, output, _ = upmix("data", "show", folder)
    assert code == 0 and "first tokens: " in output and (corpus_folder / "00.txt").read_text()[:20] in output
    code, output, _ = upmix("data", "show", f"{folder}/train", "--tokenizer", model)
    assert code == 0 and f"{counts} of uint16" in output


def test_mistakes_are_one_line_and_exit_code_2(upmix, corpus_folder, data_root, tmp_path):
    broken = tmp_path / "a.jsonl"
    broken.write_text('{"text": "a"}\n{"text": 1}\n')
    model = tmp_path / "a.model"
    upmix("tokenizer", "train", corpus_folder, "--vocab-size", 500, "--out", model)
    for arguments in [
        ("tokenizer", "train", "nowhere", "--vocab-size", 500, "--out", model),
        ("tokenizer", "train", corpus_folder, "--vocab-size", 500, "--out", tmp_path / "a.bin"),
        ("tokenizer", "train", corpus_folder, "--vocab-size", 20, "--out", model),
        ("tokenizer", "train", corpus_folder, "--vocab-size", 0, "--out", model),
        ("tokenizer", "show", corpus_folder / "00.txt"),
        ("data", "prepare", broken, "--tokenizer", model, "--name", "mine"),
        ("data", "prepare", broken, "--tokenizer", model, "--name", "a/b"),
        ("data", "prepare", broken, "--tokenizer", model, "--name", "mine", "--malformed", "maybe"),
        ("data", "prepare", broken, "--tokenizer", model, "--name", "mine", "--workers", 0),
        ("data", "show", tmp_path / "nothing"),
        ("data", "show", "/"),
    ]:
        code, output, error = upmix(*arguments)
        assert code == 2 and output == "" and len(error.splitlines()) <= 2, (arguments, error)
        assert error.splitlines()[-1].startswith("upmix: ")
    assert f"{broken}:2: field 'text' holds no text but int" in upmix(
        "data", "prepare", broken, "--tokenizer", model, "--name", "mine")[2]
