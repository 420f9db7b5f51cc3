"""Megatron-Core's own modules beside ours: it loads what is written, and what it saves is read; logits are the same.

They run on the CPU, in processes of their own. Transformer Engine's modules and mamba_ssm's kernels need a GPU: the
names are Transformer Engine's, the modules that load them are not, and our scan stands for mamba_ssm's.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from framework.convert.fields import Facts
from framework.convert.megatron import Options, from_megatron, to_megatron
from framework.convert.megatron.target import choose
from framework.convert.megatron.verify import run_peer
from framework.errors import UserError
from framework.model import Context
from framework.surgery import find_source
from framework.training import load_run
from tests.helpers.conversion import VOCAB, make_run, weights_of
from tests.helpers.megatron_cases import OURS
from tests.helpers.megatron_models import CASES, tokens

pytest.importorskip("megatron.core")
OUR_TOKENS = torch.randint(VOCAB, (2, 19), generator=torch.Generator().manual_seed(0))
LOCAL = "experts, local"
"""A case of OURS with the names of the other layer specification."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The two ranks that save CASES, and the folder that they save into."""
    folder = tmp_path_factory.mktemp("saved")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = []
    for rank in range(2):
        with (folder / f"{rank}.log").open("w") as log:
            processes.append(subprocess.Popen(
                [sys.executable, "-m", "tests.helpers.megatron_models", str(rank), str(folder)],
                stdout=log, stderr=subprocess.STDOUT, env=environment))
    yield processes, folder
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def loaded(saved, tmp_path_factory) -> dict:
    """Of each of OURS: its run, what Megatron-Core says of its keys, and the logits there."""
    root = tmp_path_factory.mktemp("loaded")
    jobs = []
    for case in (*OURS, LOCAL):
        folder, spec = root / case, "local" if case == LOCAL else "te"
        pattern, fields = OURS[case.removesuffix(", local")]
        source = find_source(make_run(folder / "run", pattern, **fields))
        to_megatron(source, folder / "out", Options(spec=spec))
        target = choose(source.loaded.architecture, spec)
        jobs.append({
            "checkpoint": str(folder / "out" / "release"), "kind": target.kind, "spec": spec,
            "out": str(folder / "out.pt"), "tokens": OUR_TOKENS.tolist(),
            "arguments": target.write_config(Facts(source.loaded.architecture, 64, None, "float32"))})
    told = run_peer(jobs, root)
    return {case: (root / case / "run", each, torch.load(job["out"], weights_only=True))
            for case, each, job in zip((*OURS, LOCAL), told, jobs, strict=True)}


def assert_same(run: Path, tokens_BS: torch.Tensor, theirs: torch.Tensor) -> None:
    """Within 1e-5 of the largest logit, which is not small."""
    with torch.no_grad():
        mine = load_run(run).model(tokens_BS, Context())
    scale = mine.abs().max()
    assert scale > 0.3 and (mine - mine.mean(-1, keepdim=True)).std() > 0.05
    assert (mine - theirs).abs().max() <= 1e-5 * scale, float((mine - theirs).abs().max() / scale)


@pytest.mark.parametrize("case", [*OURS, LOCAL])
def test_megatron_core_loads_what_is_written(case, loaded):
    run, told, logits = loaded[case]
    assert told == {"missing": [], "ignored": []}
    assert_same(run, OUR_TOKENS, logits)


@pytest.mark.parametrize("case", CASES)
def test_what_megatron_core_saves_is_read(case, saved, loaded, tmp_path):
    processes, folder = saved
    for rank, process in enumerate(processes):
        assert process.wait(timeout=200) == 0, (folder / f"{rank}.log").read_text()[-2000:]
    from_megatron(folder / case, tmp_path / "run")
    assert_same(tmp_path / "run", tokens(), torch.load(folder / f"{case}.pt", weights_only=True))


def test_verifying_compares_and_leaves_nothing_where_it_fails(loaded, tmp_path, monkeypatch):
    """`--verify` with what the process said of another writing of the same run."""
    run, told, logits = loaded["experts"]

    def answer(told: dict, logits: torch.Tensor):
        def run_jobs(jobs: list, folder: Path) -> list:
            assert jobs[0]["tokens"] == OUR_TOKENS.tolist() and Path(jobs[0]["checkpoint"]).is_dir()
            torch.save(logits, jobs[0]["out"])
            return [told]

        return run_jobs

    for name, function, said in (
        ("good", answer(told, logits), None),
        ("bad", answer(told, logits + 1e-3), "--verify: logits in Megatron-Core differ by 0.001"),
        ("missing", answer({"missing": ["a.b"], "ignored": []}, logits), "misses or ignores a.b"),
    ):
        monkeypatch.setattr("framework.convert.megatron.verify.run_peer", function)
        if said is None:
            assert to_megatron(find_source(run), tmp_path / name, Options(verify=True))["verified"]["relative"] < 1e-5
            continue
        with pytest.raises(UserError, match=said):
            to_megatron(find_source(run), tmp_path / name, Options(verify=True))
        assert not list(tmp_path.glob(f"*{name}*"))


@pytest.mark.full
def test_verify_as_a_user_asks_for_it(upmix, tmp_path):
    pattern, fields = OURS["hybrid"]
    run = make_run(tmp_path / "run", pattern, **fields)
    code, out, _ = upmix("convert", "to-megatron", run, tmp_path / "out", "--dtype", "bfloat16", "--verify", "--json")
    assert code == 0 and json.loads(out)["verified"]["relative"] < 1e-5
    code, _, err = upmix("convert", "to-megatron", run, tmp_path / "again", "--spec", "local", "--verify")
    assert code == 2 and "MambaModel has one layer specification" in err
    assert weights_of(run, 3) and not (tmp_path / "again").exists()
