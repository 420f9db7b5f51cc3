"""Kernels compiled without a GPU: what is recorded, what the gate finds, and that the committed tables are theirs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

from framework.bench.kernels import command, gate, table
from framework.bench.kernels.cases import all_cases
from framework.bench.kernels.compile import Compiled
from framework.bench.kernels.floor import H100
from framework.bench.kernels.machine_code import parse
from framework.bench.kernels.timed import floors_of

CHECKOUT = Path(__file__).parents[3]
NEEDLESS = ("pydantic", "pydantic_core", "yaml", "typer", "click", "rich", "scipy", "sentencepiece", "tokenizers",
            "pyarrow", "zstandard", "tensorboard", "matplotlib", "safetensors", "megatron", "transformers", "pytest",
            "hypothesis", "einops", "psutil", "deepspeed")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Python in a process of its own, as a shell would start it, with a cache for all of this file."""
    cache = tmp_path_factory.mktemp("triton")

    def python(*arguments: str) -> subprocess.CompletedProcess:
        environment = os.environ | {"PYTHONPATH": str(CHECKOUT), "TRITON_CACHE_DIR": str(cache)}
        return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True,
                              cwd=cache, timeout=240)

    return python


def test_the_gate_finds_what_is_bad(run):
    done = run(str(Path(__file__).with_name("bad_kernels.py")))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("good") == []
    assert {name: len(faults) for name, faults in found.items()} == dict.fromkeys(found, 1), found
    said = {name: faults[0] for name, faults in found.items()}
    assert said["spilling"].startswith("spills ")
    assert said["copy_rows"] == "copies 2 bytes at a time, not 16"
    assert said["without_tensor_cores"].startswith("multiplies matrices without tensor cores: 0 instructions")
    assert said["greedy"].startswith("takes ") and said["greedy"].endswith(f"of {227 * 1024}")


@pytest.mark.skipif(not table.compiled_file().exists(), reason=f"no table of Triton {triton.__version__} is kept")
def test_the_table_is_that_of_the_kernels_and_none_is_bad(run):
    """Of every launch by its fingerprint; a sample is compiled again. One bit more in a kernel, and this fails."""
    done = run("-m", "framework.bench.kernels", "--check")
    assert done.returncode == 0, done.stderr


def test_tables_of_all_versions_are_of_the_same_kernels():
    """Fingerprints do not depend on Triton's version: whoever writes one table must write the other."""
    files = sorted(table.DOCS.glob("kernels_sm90_triton*.md"))
    assert [file.stem for file in files] == ["kernels_sm90_triton3.6", "kernels_sm90_triton3.9"]
    fingerprints = [{(row.kernel, row.fingerprint) for row in table.read_compiled(file)} for file in files]
    assert fingerprints[0] == fingerprints[1]


def test_it_runs_on_torch_triton_and_numpy_alone(run):
    """With everything else of this project's requirements impossible to import."""
    blocked = f"import sys; sys.modules.update(dict.fromkeys({NEEDLESS}))"
    code = "import runpy; sys.argv = ['', '--compile-only', '--json', '--only', 'gated_rms_norm, R=32768 I=4096']; " \
           "runpy.run_module('framework.bench.kernels', run_name='__main__')"
    done = run("-c", f"{blocked}; {code}")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert {row["kernel"] for row in rows} == {"gated_norm_forward", "gated_norm_backward"}
    for row in rows:
        assert 16 < row["registers"] < 256 and row["spill_bytes"] == 0 and row["store_bits"] == row["load_bits"] == 128


def test_mistakes_are_one_line(run):
    """No GPU, or no such kernel; the interpreter that tests run in does not matter."""
    command = "import sys; sys.argv[0] = 'upmix'; from framework.cli import main; main()"
    for arguments, said in (
        (["--only", "none"], "--only none: no kernel is called so"), ([], "no GPU"), (["--compile-only", "x"], "x"),
        (["--floors", "--compile-only"], "one at a time"), (["--check", "--only", "ssd"], "allowed: --check alone"),
    ):
        done = run("-c", command, "bench", "kernels", *arguments)
        if said == "no GPU" and os.path.exists("/dev/nvidia0"):
            continue
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.count("\n") == 1 and said in done.stderr


def test_output_that_goes_nowhere_ends_in_one_line(run):
    """A reader that has enough, and a disk that is full."""
    started = "import sys, subprocess; " \
              "command = [sys.executable, '-m', 'framework.bench.kernels', '--floors', '--json', '--only', 'ssd']; "
    for target, said in (("open('/dev/full', 'w')", "No space left on device"), ("subprocess.PIPE", "")):
        done = run("-c", f"{started}one = subprocess.Popen(command, stdout={target}, stderr=subprocess.PIPE, "
                   "text=True); one.stdout and one.stdout.close(); print(one.stderr.read(), end=''); "
                   "sys.exit(one.wait())")
        assert done.returncode == 1 and "Traceback" not in done.stdout
        assert said in done.stdout and done.stdout.count("\n") == (1 if said else 0)


def test_floors_are_said_in_json_too(capsys):
    assert command.main(["--floors", "--json", "--only", "gated_rms_norm"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["flops_per_second"] == 790e12 and len(said["rows"]) == 4
    assert {row["kernel"] for row in said["rows"]} == {"gated_rms_norm"}


def test_a_table_cut_short_is_said_in_one_line(tmp_path, monkeypatch):
    text = table.compiled_file().read_text()
    (tmp_path / table.compiled_file().name).write_text(text[: text.rindex("|", 0, -40)])
    monkeypatch.setattr(gate, "compiled_file", lambda: table.compiled_file(tmp_path))
    found, = gate.table_faults([])
    assert "cannot be read" in found and "--compile-only" in found


def test_a_table_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(table, "compiled_file", lambda: tmp_path / "none" / "table.md")
    monkeypatch.setattr(command, "compile_launches", None)
    assert command.main(["--compile-only"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_fingerprints_follow_the_code_and_nothing_else(run, tmp_path):
    """Of a kernel, what it calls and the constants it names; not comments, lines or other functions."""
    source = """
import torch, triton, triton.language as tl
SIZE = tl.constexpr(4)

@triton.jit
def double(x):
    return x * 2

@triton.jit
def kernel(x, BLOCK: tl.constexpr):
    tl.store(x + tl.arange(0, BLOCK), double(tl.load(x + tl.arange(0, BLOCK))) + SIZE)

@triton.jit
def other(x):
    tl.store(x, 0)
"""
    changes = {
        "same": source, "comment": source.replace("    return", "    # twice\n\n    return"),
        "docstring": source.replace("    return", '    """Twice."""\n    return'), "line": "\n\n" + source,
        "other": source.replace("(x, 0)", "(x, 1)"),
        "callee": source.replace("x * 2", "x * 3"), "constant": source.replace("(4)", "(5)"),
        "kernel": source.replace("+ SIZE", "- SIZE"),
    }
    for name, text in changes.items():
        (tmp_path / f"probe_{name}.py").write_text(text.replace("import torch", f"# {name}\nimport torch"))
    code = f"""
import sys, os; sys.path.insert(0, {str(tmp_path)!r}); os.environ.pop("TRITON_INTERPRET", None)
from importlib import import_module
import torch
from framework.bench.kernels.launches import recorded
found = {{}}
for name in {list(changes)}:
    with recorded("here") as launches:
        import_module(f"probe_{{name}}").kernel[(1,)](torch.empty(8, device="meta"), BLOCK=8)
        import_module(f"probe_{{name}}").kernel[(1,)](torch.empty(9, device="meta")[1:], BLOCK=8)
    found[name] = [launch.fingerprint for launch in launches]
import json; print(json.dumps(found))
"""
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    aligned, shifted = found.pop("same")
    assert aligned != shifted
    assert {name for name, (fingerprint, _) in found.items() if fingerprint == aligned} == {
        "comment", "docstring", "line", "other"}


def test_machine_code_is_read():
    assembly = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/                   LDGSTS.E.BYPASS.LTC128B.64 [R1], desc[UR4][R2.64] ;
        /*0030*/             @!UP0 UTMALDG.2D [UR8], [UR4] ;
        /*0040*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], !UPT ;
        /*0050*/               @P1 STG.E.U16 desc[UR4][R2.64], R5 ;
        /*0060*/                   STG.E desc[UR4][R2.64], R5 ;
        /*0070*/                   STL.128 [R1], R4 ;
    """
    code = parse(assembly)
    assert code.tensor_core_instructions == 1
    assert dict(code.loads) == {128: 2, 64: 1} and dict(code.stores) == {16: 1, 32: 1}


def test_tables_read_back_as_written(tmp_path):
    rows = [Compiled("kernel", "case: A=1 num_warps=4", 40, 0, 1024, 1, 8, 128, (16, 128), 64, "0123456789"),
            Compiled("other", "case", 255, 8, 0, 0, 0, 0, (), 0, "abcdef0123")]
    (tmp_path / "table.md").write_text(table.compiled_text(rows))
    assert table.read_compiled(tmp_path / "table.md") == rows
    assert table.read_compiled(tmp_path / "none.md") == []


def test_docs_hold_a_row_for_every_case_with_the_floor_that_formulas_give():
    lines = (table.DOCS / "kernels.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")][:4] for line in lines if line.startswith("| ")]
    for floor in floors_of(all_cases(), H100):
        kernel, shape, direction, milliseconds = floor.values()
        assert [kernel, shape, direction, f"{milliseconds:.3f}"] in rows
