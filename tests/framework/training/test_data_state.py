"""What a run folder holds of its data."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from framework.training.data_state import hold_data


@pytest.mark.parametrize("suffix", [".model", ".json"])
@pytest.mark.parametrize("linked", [False, True])
def test_the_recipe_may_name_the_runs_own_tokenizer(suffix, linked, tmp_path):
    """The file, or a link to it."""
    own = tmp_path / f"tokenizer{suffix}"
    own.write_bytes(b"pieces")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    named = Path(own)
    if linked:
        (tmp_path / "elsewhere").mkdir()
        named = tmp_path / "elsewhere" / own.name
        named.symlink_to(own)
    split = SimpleNamespace(num_tokens=3)
    data = SimpleNamespace(tokenizer=SimpleNamespace(path=named, fingerprint="f"), manifests=(), train=split,
                           validation=split)
    hold_data(data, tmp_path)
    assert own.read_bytes() == b"pieces" and (tmp_path / "tokenizer_config.json").read_text() == "{}"
    assert json.loads((tmp_path / "data.json").read_text())["tokenizer_sha256"] == "f"


def test_another_tokenizer_replaces_what_an_attempt_left(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"old")
    (tmp_path / "new.model").write_bytes(b"new")
    split = SimpleNamespace(num_tokens=3)
    hold_data(SimpleNamespace(tokenizer=SimpleNamespace(path=tmp_path / "new.model", fingerprint="f"), manifests=(),
                              train=split, validation=split), tmp_path)
    assert (tmp_path / "tokenizer.model").read_bytes() == b"new"
