"""Mistakes in an algorithm of one's own are one line that names its function."""

import cases
import jax
import jax.numpy as jnp
import optax
import pytest

import fedjax_masks as fm
from fedjax_masks.algorithms.registry import REGISTRY
from fedjax_masks.core import training
from fedjax_masks.core.errors import UserError
from fedjax_masks.simulation import make_simulation
from fedjax_masks.transforms import compression
from fedjax_masks.transforms.attacks import with_attack
from fedjax_masks.transforms.sequence import then

MODEL = fm.models.mlp(cases.task(), hidden=(8,))
FEDAVG = fm.fedavg(MODEL, optax.sgd(0.1), batch_size=4)


def train_two(key, common, message, client, data):
    return FEDAVG.train(key, common, message, client, data)[:2]


def train_silent(key, common, message, client, data):
    return client, message, {}


def trained(**changes):
    """A training that returns something else in one place."""

    def train(key, common, message, client, data):
        parts = dict(zip(("client", "upload", "metrics"), FEDAVG.train(key, common, message, client, data)))
        return tuple({**parts, **changes}.values())

    return FEDAVG._replace(train=train)


def merge_two(*args):
    return FEDAVG.merge(*args), {}


def serve_one(key, common, server, kept, upload):
    return upload


WRONG = {
    "init": (
        FEDAVG._replace(init=lambda key, task: FEDAVG.init(key, task).server),
        "init=<lambda>: must return a State, and returns a Server of 2 with 4 arrays",
    ),
    "two values": (
        FEDAVG._replace(train=train_two),
        "train=train_two: must return three values, the client's state, an upload and metrics, and returns "
        "a tuple of 2 with 4 arrays",
    ),
    "none": (FEDAVG._replace(train=lambda *args: None), "train=<lambda>: must return three values"),
    "client": (
        trained(client=jnp.zeros(3)),
        "train=trained.train: must return the client's state, a tuple of 0, as it gets it, and returns "
        r"an array \[3\]",
    ),
    "metrics": (
        trained(metrics=training.nothing_done()),
        "must return metrics as a mapping from names to numbers, and returns a LocalMetrics of 6",
    ),
    "vector": (
        trained(metrics={"loss": jnp.zeros(3)}),
        r"a number as metric 'loss', and returns an array \[3\]",
    ),
    "text": (trained(metrics={"note": "good"}), "a number as metric 'note', and returns 'good'"),
    "merge": (
        FEDAVG._replace(merge=merge_two),
        "merge=merge_two: must return the server's state, a Server of 2 with 4 arrays, as it gets it, and "
        "returns a tuple of 2 with 4 arrays",
    ),
    "merge none": (FEDAVG._replace(merge=lambda *args: None), "merge=<lambda>: .* and returns None"),
    "serve": (FEDAVG._replace(serve=serve_one), "serve=serve_one: must return two values"),
    "report": (FEDAVG._replace(report=lambda server: 3.0), "report=<lambda>: must return metrics"),
    "wired": (
        compression.with_wire(FEDAVG._replace(train=train_two), up=compression.quantize(8)),
        "train=train_two: must return three values",
    ),
    "attacked": (with_attack(FEDAVG._replace(train=train_two), "sign"), "train=train_two: must return three"),
    "in sequence": (
        then(
            FEDAVG,
            FEDAVG._replace(train=train_two),
            done=lambda server: jnp.array(True),
            handover=lambda common, server, fresh: server,
        ),
        "train=train_two: must return three",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_results_are_named_with_their_function(name):
    algorithm, message = WRONG[name]
    with pytest.raises(UserError, match=message) as error:
        make_simulation(algorithm, cases.task(), cohort=3, chunk=1)
    assert "\n" not in error.value.args[0]


def test_an_algorithm_may_report_nothing():
    run = fm.simulate(FEDAVG._replace(train=train_silent), cases.task(), rounds=2, cohort=3)
    assert run.records[-1]["round"] == 2
    assert run.records[-1]["client_flops"] is None


def plain_model():
    """A linear model by hand, which lists no layers."""
    apply = lambda params, x: x @ params["weights"]
    return fm.models.Model(
        name="mine",
        init=lambda key: {"weights": jnp.zeros((6, 3))},
        apply=apply,
        forward=lambda params, x, **options: (apply(params, x), {}),
        kernels=(),
        splits=(),
        input_shape=(6,),
        rebuild=lambda widths: plain_model(),
    )


NEEDS_NO_LAYERS = {
    *("fedavg", "fednova", "fedprox", "fedsgd", "local"),
    *("perfedavg", "scaffold", "sign", "topk"),
}


@pytest.mark.parametrize("name", sorted(REGISTRY.keys() - NEEDS_NO_LAYERS))
def test_a_model_without_layers_is_refused_in_one_line(name):
    with pytest.raises(
        ValueError, match=r"^(model='mine'|shared=''): .*accepted|^model='mine': must have weighted"
    ):
        REGISTRY[name].factory(plain_model(), optax.sgd(0.1))


@pytest.mark.parametrize("name", sorted(NEEDS_NO_LAYERS))
def test_a_model_without_layers_is_trained_as_a_whole(name):
    algorithm = REGISTRY[name].factory(plain_model(), optax.sgd(0.1))
    jax.eval_shape(lambda key: algorithm.init(key, cases.task()), jax.random.key(0))


@pytest.mark.parametrize("make", [fm.fedmask, fm.feddst, fm.fedpm, fm.heterofl, fm.lotteryfl])
def test_the_missing_layers_are_named(make):
    with pytest.raises(UserError, match="model='mine': must have weighted layers in its `kernels`"):
        make(plain_model(), optax.sgd(0.1))


def test_perfedavg_refuses_batches_that_have_no_halves():
    with pytest.raises(UserError, match="batch_size=1: must be 2 or more"):
        fm.perfedavg(MODEL, optax.sgd(0.1), batch_size=1)
