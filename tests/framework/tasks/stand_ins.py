"""What stands in for lm-eval and for a tokenizer where tests need neither."""

from dataclasses import dataclass
from typing import Any

LETTERS = "abcdefghijklmnopqrstuvwxyz \n.(),=[]:_*#"
PAIRS = ("ab", "de", "\n\n")


class Letters:
    """A token for each letter, and for some pairs of them; token 0 ends documents."""

    pieces = ("", *LETTERS, *PAIRS)
    vocab_size, eod = len(pieces), 0

    def encode(self, text: str) -> list[int]:
        tokens, at = [], 0
        while at < len(text):
            piece = text[at : at + 2] if text[at : at + 2] in PAIRS else text[at]
            tokens.append(self.pieces.index(piece))
            at += len(piece)
        return tokens

    def decode(self, ids) -> str:
        return "".join(self.pieces[token] for token in ids if token < self.vocab_size)


@dataclass(frozen=True)
class Asked:
    """A request as lm-eval makes it."""

    args: tuple[Any, ...]


class Stub:
    """In a `TaskSet`'s place: asks for some of everything, and tells what it got."""

    def run(self, model, limit: int | None) -> dict[str, Any]:
        texts = ["def f(x):\n", "", "import ", "while True:\n    return " * 9][:limit]
        pairs = model.loglikelihood([Asked((text, after)) for text in texts for after in ("x", " self.name", "\n")])
        rolling = model.loglikelihood_rolling([Asked((text,)) for text in texts])
        written = model.generate_until([Asked((text, {"until": ["\n\n"], "max_gen_toks": 3})) for text in texts])
        return {"results": {"stub": {
            "alias": "stub", "pairs,none": sum(nats for nats, _ in pairs), "rolling,none": sum(rolling),
            "greedy,none": float(sum(greedy for _, greedy in pairs)), "length,some": float(len("".join(written))),
            "length_stderr,some": "N/A",
        }}}
