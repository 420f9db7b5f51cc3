"""DiLoCo's scaling laws (arXiv 2503.09799): loss, learning rates and batch of M replicas that seldom talk."""

from __future__ import annotations

from dataclasses import dataclass

from framework.laws.law import Law
from framework.laws.values import Range, Values, Variable, one_of

NAME = "diloco"
SIZES = ("num_params", "num_params_active", "num_params_total")
TOKENS_PER_PARAM = 20
SETTLED_SIZE = 335e6
"""Parameters from which the best outer learning rate no longer changes with size."""


@dataclass(frozen=True)
class PowerLaw:
    """scale N^of_size M^of_replicas."""

    scale: float
    of_size: float
    of_replicas: float = 0.0

    def __call__(self, num_params: float, num_replicas: float = 1) -> float:
        return self.scale * num_params**self.of_size * num_replicas**self.of_replicas


@dataclass(frozen=True)
class Coefficients:
    """Losses fitted apart for 0 (data parallel, no DiLoCo), 1, 2, 4 and 8 replicas, and laws joint in N and M."""

    loss_apart: dict[int, PowerLaw]
    loss: PowerLaw
    learning_rate: PowerLaw
    batch_size: PowerLaw
    data_parallel_learning_rate: PowerLaw
    data_parallel_batch_size: PowerLaw
    outer_learning_rate: dict[int, float]


PUBLISHED = {
    "paper": Coefficients(
        loss_apart={
            0: PowerLaw(18.129, -0.0953),
            1: PowerLaw(18.363, -0.0961),
            2: PowerLaw(18.768, -0.0969),
            4: PowerLaw(19.762, -0.0992),
            8: PowerLaw(21.051, -0.1018),
        },
        loss=PowerLaw(19.226, -0.0985, 0.0116),
        learning_rate=PowerLaw(22256, -0.8827, 0.2929),
        batch_size=PowerLaw(0.00709, 0.4695, 0.3399),
        data_parallel_learning_rate=PowerLaw(16319.2, -0.819),
        data_parallel_batch_size=PowerLaw(0.22592, 0.281),
        outer_learning_rate={1: 0.4, 2: 0.6, 4: 0.6, 8: 0.8},
    )
}


def predict(values: Values, coefficients: Coefficients | None = None) -> Values:
    """The loss at D = 20 N, and the settings of the runs: peak (inner) learning rate, batch size, outer rate.

    num_replicas 0 is plain data parallelism. The loss is that fitted for this M alone where there is one, and
    `joint_loss` the law in both N and M; at 2.4e9 parameters both lie about 0.5 % below what was measured.
    """
    of = coefficients or PUBLISHED["paper"]
    _, num_params = one_of(NAME, values, SIZES)
    replicas = int(values["num_replicas"])
    found = {"num_params": num_params, "num_replicas": replicas, "tokens": TOKENS_PER_PARAM * num_params}
    if replicas == 0:
        return {"loss": of.loss_apart[0](num_params), **found,
                "learning_rate": of.data_parallel_learning_rate(num_params),
                "batch_size": of.data_parallel_batch_size(num_params)}
    joint = of.loss(num_params, replicas)
    apart = of.loss_apart.get(replicas)
    found = {"loss": apart(num_params) if apart else joint, "joint_loss": joint, **found,
             "learning_rate": of.learning_rate(num_params, replicas),
             "batch_size": of.batch_size(num_params, replicas)}
    known = replicas in of.outer_learning_rate and num_params >= SETTLED_SIZE
    return found | ({"outer_learning_rate": of.outer_learning_rate[replicas]} if known else {})


def _domain(values: Values) -> dict[str, Range]:
    return {"num_params": (35e6, 2.4e9), "num_replicas": (0, 8)}


LAW = Law(
    name=NAME,
    title="dense models trained by M replicas that exchange every 30 steps (DiLoCo)",
    source="arXiv 2503.09799, laws apart and joint",
    formula="L = 19.226 N^-0.0985 M^0.0116; for each M apart A N^a",
    definitions=("N: parameters of a dense model", "D: 20 N tokens (C4), always",
                 "M: replicas, each with its share of the batch; 0: data parallelism without DiLoCo",
                 "batch size: in sequences of 2048 tokens, a reading: as tokens it would be less than one sequence",
                 "outer rate: known from 335e6 parameters for 1, 2, 4 and 8 replicas",
                 "checked by its authors at 4e9 and 10e9 parameters"),
    variables=(*(Variable(name, "N; any of the three names") for name in SIZES),
               Variable("num_replicas", "M; 0: data parallel", minimum=0, default=0, whole=True)),
    sets=PUBLISHED,
    predict=predict,
    domain=_domain,
)
