"""lm-eval's questions: likelihoods beside transformers' own model, and greedy continuations."""

import pytest
import torch

from framework.model import Context
from framework.tasks.collective import Team
from framework.tasks.continuation import by_forwards, with_caches
from framework.tasks.scoring import Scorer
from framework.tasks.task_model import TaskModel
from framework.training import load_run
from tests.framework.tasks.stand_ins import Asked, Letters
from tests.helpers.conversion import load_theirs, make_run, write
from tests.helpers.models import MOE, VOCAB, initialized

SEQ_LEN, CPU = 16, torch.device("cpu")
TEXTS = [("def f", "(x)"), ("", "import a"), ("import q, z = while(x)." * 2, "def"), ("x ", "= y"), ("x", ""),
         ("", "q" * 40)]
CASES = {"attention and experts": ("(*E)x2", dict(attention={"qk_norm": "head"})), "Mamba-2": ("MM", {})}


def task_model(model, continues=with_caches, batch_size: int = 4) -> TaskModel:
    team = Team(Scorer(model.eval(), SEQ_LEN, batch_size, CPU))
    continued = by_forwards(team) if continues is by_forwards else with_caches(model, batch_size)
    return TaskModel(team, Letters(), SEQ_LEN, continued)


@torch.no_grad()
def as_in_hflm(theirs, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """What lm-eval's HFLM makes of tokens, by its own formula: the model sees the last SEQ_LEN before the last one."""
    seen = (context + continuation)[-(SEQ_LEN + 1) :][:-1]
    log_probability_SV = theirs(torch.tensor([seen]), use_cache=False).logits[0].double().log_softmax(-1)
    chosen_SV = log_probability_SV[-len(continuation) :]
    picked = chosen_SV[range(len(continuation)), continuation]
    return picked.sum().item(), bool((chosen_SV.argmax(-1) == torch.tensor(continuation)).all())


@pytest.mark.parametrize("case", CASES)
def test_likelihoods_are_those_of_lm_evals_model_of_transformers(tmp_path, case):
    pattern, changes = CASES[case]
    run = make_run(tmp_path / "run", pattern, **changes)
    write(run, tmp_path / "hf")
    mine, theirs, letters = task_model(load_run(run).model), load_theirs(tmp_path / "hf"), Letters()
    answers = mine.loglikelihood([Asked(pair) for pair in TEXTS])
    for (context, continuation), (nats, greedy) in zip(TEXTS[:3], answers, strict=False):
        reference = as_in_hflm(theirs, letters.encode(context) or [0], letters.encode(continuation))
        assert nats == pytest.approx(reference[0], rel=1e-5) and greedy is reference[1]
    spaced, nothing, long = answers[3:]
    assert spaced[0] == pytest.approx(as_in_hflm(theirs, letters.encode("x"), letters.encode(" = y"))[0], rel=1e-5)
    assert nothing == (0, True)
    tokens = [0, *letters.encode("q" * 40)]
    windows = [(tokens[:1], tokens[1:17]), (tokens[16:17], tokens[17:33]), (tokens[24:33], tokens[33:])]
    expected = sum(as_in_hflm(theirs, *window)[0] for window in windows)
    assert long[0] == pytest.approx(expected, rel=1e-5)
    assert mine.loglikelihood_rolling([Asked(("q" * 40,)), Asked(("",))]) == [pytest.approx(expected, rel=1e-5), 0]


def test_a_continuation_is_greedy_where_each_token_is_the_likeliest():
    model, letters = task_model(initialized(pattern="*E")), Letters()
    prompts = ["def", "im", "wh", "xy", "q"]
    texts = model.generate_until([Asked((prompt, {"max_gen_toks": 4, "until": None})) for prompt in prompts])
    # Those whose tokens come back from the text.
    pairs = [(prompt, text) for prompt, text in zip(prompts, texts, strict=True)
             if len(letters.encode(prompt + text)) == len(letters.encode(prompt)) + 4]
    assert len(pairs) > 1
    for prompt, text in pairs:
        other = text[:-1] + ("x" if text[-1] != "x" else "y")
        answers = model.loglikelihood([Asked((prompt, text)), Asked((prompt, other))])
        assert [greedy for _, greedy in answers] == [True, False] and answers[0][0] > answers[1][0]


@torch.no_grad()
def greedy(model, prompt: list[int], count: int) -> list[int]:
    """The likeliest tokens one by one, by forwards without padding and caches."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(model.eval()(torch.tensor([tokens]), Context())[0, -1].argmax().item())
    return tokens[len(prompt) :]


GENERATING = {"attention and experts": dict(pattern="*E", moe=MOE), "Mamba": dict(pattern="mM")}
PROMPTS = ["def f", "im", "", "wh", "import q, z = while(x) or", "xy, z"]


@pytest.mark.parametrize("continues", [with_caches, by_forwards])
@pytest.mark.parametrize("name", GENERATING)
def test_text_is_what_the_likeliest_tokens_spell(continues, name):
    model, letters = initialized(**GENERATING[name]), Letters()
    settings = {"until": [], "max_gen_toks": 6, "do_sample": False}
    written = task_model(model, continues, 2).generate_until([Asked((prompt, settings)) for prompt in PROMPTS])
    for prompt, text in zip(PROMPTS, written, strict=True):
        tokens = greedy(model, (letters.encode(prompt) or [0])[-(SEQ_LEN - 6) :], 6)
        tokens = tokens[: tokens.index(0)] if 0 in tokens else tokens
        assert text == letters.decode(tokens)
    assert len(set(written)) > 1


class Scripted:
    """Continues every prompt alike, and counts how many tokens were asked for."""

    def __init__(self, text: str, eod_after: int | None = None) -> None:
        self.tokens = Letters().encode(text)
        if eod_after is not None:
            self.tokens.insert(eod_after, 0)

    def __call__(self, prompts, most, ended):
        self.prompts, found = prompts, []
        for token in self.tokens[:most]:
            found.append(token)
            if ended(found):
                break
        self.taken = len(found)
        return [found for _ in prompts]


STOPS = {  # settings, where the document ends -> text, tokens taken
    "at a word": ({"until": ["="], "max_gen_toks": 9}, None, "x.y ", 5),
    "at a word given alone": ({"until": "y", "max_gen_toks": 9}, None, "x.", 3),
    "at the first of two": ({"until": ["zz", " ", "y"], "max_gen_toks": 9}, None, "x.", 3),
    "at the most tokens": ({"until": ["q"], "max_tokens": 3}, None, "x.y", 3),
    "where the document ends": ({"until": ["="], "max_gen_toks": 9}, 2, "x.", 3),
}


@pytest.mark.parametrize("case", STOPS)
def test_text_ends(case):
    settings, eod_after, text, taken = STOPS[case]
    script = Scripted("x.y = z, q", eod_after)
    model = TaskModel(None, Letters(), SEQ_LEN, script)
    assert model.generate_until([Asked(("a" * 40, settings)), Asked(("b", settings))]) == [text, text]
    assert script.taken == taken
    room = SEQ_LEN - settings.get("max_gen_toks", 3)
    assert [len(prompt) for prompt in script.prompts] == [room, 1]


def test_the_stand_in_speaks_what_the_models_know():
    assert Letters.vocab_size == VOCAB
