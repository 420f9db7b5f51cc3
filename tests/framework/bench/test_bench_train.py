"""`upmix bench train`: turns of contestants, what is made of them, their mistakes and their deaths."""

import json
import os
import sys
import time

import pytest
import torch

from framework.bench import contestant as contestants
from framework.bench.contestant import OURS, Contestant, ContestantFailure
from framework.bench.results import summarize
from framework.bench.table import lines
from framework.bench.train import Options, measure
from framework.errors import UserError
from framework.recipe import load_recipe, sizes
from tests.helpers.benches import MAMBA, on_corpus
from tests.helpers.runs import write_corpus

FACTS = {"peak_memory_bytes": 10**9, "peak_flops_per_second": 1e12, "device": "cpu", "gpu": None, "torch": "2.13",
         "num_threads": 2}
ROUTING = {"imbalance": 1.5, "dropped_fraction": 0.25, "rows_per_choice": 0.75}


def actor(name: str, said: list[str], seconds: list[float]):
    """A contestant that answers from a list of times."""
    times = iter(seconds)

    def ask(do: str, **details):
        said.append(f"{name} {do}" + (" evenly" if details.get("balanced") else ""))
        if do == "round":
            return {"seconds": next(times), "tokens": 120} | (ROUTING if name == OURS else {})
        if do == "warm_up":
            return {"loss": 6.0 if name == OURS else 6.5}
        if do == "facts":
            return FACTS if name == OURS else {"model": "Twin", "package": "theirs 1", "peak_memory_bytes": 7}
        if do == "phases":
            return {"step_seconds": 2.0, "seconds": {"forward": 1.5, "other": 0.5}, "communication_seconds": None}
        return {"rounds": [0.01, 0.05, 0.02]}

    return ask


def played(options: Options):
    loaded, said, turns = load_recipe("bench/moe_256", []), [], []
    asked = {"hf": actor("hf", said, [2, 6, 4])} if options.peers else {}
    asked[OURS] = actor(OURS, said, [1, 2, 4, 1, 1, 1])
    measured = measure(asked, loaded, options, lambda: turns.append(None))
    assert len(turns) == options.num_turns(loaded)
    return loaded, said, summarize(measured, "bench/moe_256", [], loaded, options.num_steps, options.compared, 0.01)


def test_rounds_take_turns_and_ratios_are_of_neighbours():
    loaded, said, found = played(Options(2, 3, ("hf",)))
    pair = ["upmix round", "hf round"]
    assert said[2:8] == 3 * pair and said[:2] == ["hf warm_up", "upmix warm_up"]
    assert said[8:] == ["upmix facts", "hf facts", "upmix phases", "upmix overhead", *["upmix round evenly"] * 3]
    assert found.rounds == [120, 60, 30] and (found.tokens_per_second, found.lowest, found.highest) == (60, 30, 120)
    peer = found.peers["hf"]
    assert peer["ratios"] == [2, 3, 1] and peer["median_ratio"] == 2 and peer["tokens_per_second"] == 30
    assert peer["first_loss_difference"] == 0.5 and found.overhead == 0.02 and found.routing == "real"
    assert found.balanced["tokens_per_second"] == 120 and found.imbalance == 1.5 == found.balanced["imbalance"]
    dropped = 0.25 * 3 * 2 * 4 * 4 * 3 * 256 * 128  # training, multiply and add, top 4, layers, matrices
    flops = sizes(loaded.architecture, 256)["flops_per_token"] - dropped
    assert sum(found.flops_per_token.values()) == pytest.approx(flops)
    assert found.mfu == pytest.approx(60 * flops / 1e12) and len(found.commit) >= 7
    text = "\n".join(lines(found))
    for words in ("2.00 times as fast (1.00 to 3.00)", "fullest expert has 1.50 times", "25.0% of rows dropped",
                  "+2.0% (+1.0% to +5.0%", "balanced routing", "experts", "forward"):
        assert words in text


def test_routing_that_is_forced_from_the_first():
    _, said, found = played(Options(1, 3, (), "balanced"))
    assert said.count("upmix round evenly") == 3 and "upmix phases evenly" in said and "upmix round" not in said
    assert found.routing == "balanced" and found.balanced is None and found.peers == {}
    _, said, found = played(Options(1, 3, (), "real"))
    assert said.count("upmix round") == 3 and found.routing == "real" and found.balanced is None


PUPPET = """
import json, os, signal, sys, time
from multiprocessing.connection import Client
{before}
connection = Client(sys.argv[2], "AF_UNIX")
while True:
    command = json.loads(connection.recv_bytes())
    {during}
    connection.send_bytes(json.dumps({{"answer": [sys.argv[1], sys.argv[3:], command]}}).encode())
"""


@pytest.fixture
def puppet(monkeypatch):
    """Starts a contestant whose process runs other code."""

    def start(before: str = "", during: str = "") -> Contestant:
        code = PUPPET.format(before=before, during=during)
        monkeypatch.setattr(contestants, "SERVE", (sys.executable, "-S", "-c", code))
        return Contestant("hf", "recipe", ["a=1"], "2")

    return start


def test_a_contestant_answers_and_leaves_with_its_block(puppet):
    begin = time.monotonic()
    with puppet(before="assert os.environ['OMP_NUM_THREADS'] == '2'") as hf:
        assert hf.ask("round", num_steps=3) == ["hf", ["recipe", "a=1"], {"do": "round", "with": {"num_steps": 3}}]
        pid = hf._process.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert time.monotonic() - begin < contestants.SECONDS_TO_LEAVE


@pytest.mark.parametrize(("code", "said"), [
    (dict(before="raise ValueError('no such thing')"), "the process of hf ended with exit code 1: ValueError: no such"),
    (dict(during="os.kill(os.getpid(), signal.SIGKILL)"), "the process of hf was killed by SIGKILL"),
    (dict(during="sys.exit(3)"), "the process of hf ended with exit code 3"),
    (dict(during="connection.send_bytes(b'{\"failure\": \"RuntimeError: full\"}')"), "hf failed: RuntimeError: full"),
])
def test_a_dead_contestant_costs_a_line(puppet, code, said):
    with pytest.raises(ContestantFailure, match=said) as told, puppet(**code) as hf:
        hf.ask("round")
    assert "\n" not in str(told.value)


def test_a_contestants_mistake_is_the_users(puppet):
    with pytest.raises(UserError, match="^cannot$"):
        with puppet(during="connection.send_bytes(b'{\"mistake\": \"cannot\"}')") as hf:
            hf.ask("round")


@pytest.mark.parametrize(("words", "said"), [
    (["--compare", "vllm"], "--compare vllm is not known; allowed: hf, megatron"),
    (["--routing", "random"], "--routing random is not known; allowed: both, real, balanced"),
    (["--compare", "hf", "--routing", "balanced"], "peers route as their weights say"),
    (["--compare", "hf,megatron", "parallel.dp_shard=2"], "runs on one rank; the recipe's layout has 2"),
    (["--pairs", "0"], "--pairs"),
])
def test_mistakes_are_one_line(upmix, words, said):
    code, out, err = upmix("bench", "train", "bench/moe_256", *words)
    assert (code, out, err.count("\n")) == (2, "", 1) and said in err


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """A folder for `on_corpus`; what is started has one thread."""
    write_corpus(tmp_path / "corpus")
    monkeypatch.setenv("UPMIX_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def test_two_processes_take_turns_and_sleep_between(upmix, corpus):
    pytest.importorskip("transformers")
    code, out, err = upmix("bench", "train", *on_corpus(MAMBA, corpus), "--compare", "hf", "--steps", "1", "--pairs",
                           "3", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["num_threads"] == 1 and found["waiting_cpu_share"] < 0.2
    peer = found["peers"]["hf"]
    assert len(peer["ratios"]) == 3 and abs(peer["first_loss_difference"]) < 1e-5
    assert peer["model"] == "JambaForCausalLM" and peer["peak_memory_bytes"] > 1e8 < found["peak_memory_bytes"]
    assert len(found["overhead_rounds"]) == 5 and {"experts", "ssm", "backward"} <= set(found["phases"]["seconds"])
    assert 0 < found["mfu"] < 1 and found["balanced"]["imbalance"] == 1 and len(found["rounds"]) == 3


class Wire:
    """Rank 0's connection, from which words come and then nothing."""

    def __init__(self, *words: str) -> None:
        self.words, self.answers = list(words), []

    def recv_bytes(self) -> bytes:
        if not self.words:
            raise EOFError
        return json.dumps({"do": self.words.pop(0), "with": {}}).encode()

    def send_bytes(self, message: bytes) -> None:
        self.answers.append(json.loads(message)["answer"])


class Counter:
    """A contestant whose ranks must be asked together."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def round(self) -> int:
        total = torch.ones(())
        torch.distributed.all_reduce(total)
        self.asked.append(int(total))
        return self.asked[-1]


def obey_on_rank() -> tuple[list, list]:
    from framework.bench.serve import obey

    counter, wire = Counter(), Wire("round", "waited", "round")
    obey(counter, wire if torch.distributed.get_rank() == 0 else None)
    return counter.asked, wire.answers


def test_every_rank_does_what_the_first_is_told(ranks):
    (first, answers), (second, none) = ranks.run(2, obey_on_rank)
    assert first == second == [2, 2] and none == []
    assert answers[::2] == [2, 2] and set(answers[1]) == {"seconds", "cpu_seconds"}
