"""Mistakes in a user's algorithm become one line that names the function, and both sides."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_masks as fm
from fedjax_masks.algorithms.registry import REGISTRY
from fedjax_masks.communication import codecs
from fedjax_masks.core import returns, trees
from fedjax_masks.core.algorithm import Info, Work
from fedjax_masks.core.errors import UserError
from fedjax_masks.simulation import make_simulation
from fedjax_masks.transforms.attacks import with_attack
from fedjax_masks.transforms.compression import with_codecs
from fedjax_masks.transforms.robust import median, with_robust_merge
from fedjax_masks.transforms.sequence import then

MODEL = fm.models.mlp(cases.task(), hidden=(8,))
FEDAVG = fm.fedavg(MODEL, optax.sgd(0.1), batch_size=4)


def init_counts(key, task):
    counts = {"visits": jnp.zeros(task.num_clients, jnp.int32)}
    return FEDAVG.init(key, task)._replace(clients=counts, profiles=counts)


def train_counting(round, message, client, data):
    _, upload, info = FEDAVG.train(round, message, (), data)
    return {"visits": client["visits"] + 1}, upload, info


def receive_counting(round, server, profile, upload, weight):
    _, contribution = FEDAVG.receive(round, server, (), upload, weight)
    return {"visits": profile["visits"] + 1}, contribution


COUNTING = FEDAVG._replace(init=init_counts, train=train_counting, receive=receive_counting)
"""FedAvg whose clients count their visits, and whose server does so, too."""


def init_with(**parts):
    return COUNTING._replace(init=lambda key, task: COUNTING.init(key, task)._replace(**parts))


def train_with(**parts):
    """A training that returns something else in one place."""

    def train(*args):
        names = ("client", "upload", "info")
        return tuple({**dict(zip(names, COUNTING.train(*args))), **parts}.values())

    return COUNTING._replace(train=train)


def receive_with(**parts):
    def receive(*args):
        names = ("profile", "contribution")
        return tuple({**dict(zip(names, COUNTING.receive(*args))), **parts}.values())

    return COUNTING._replace(receive=receive)


def merge_with(change):
    def merge(*args):
        return change(*COUNTING.merge(*args))

    return COUNTING._replace(merge=merge)


def in_bfloat16(server, info):
    return server._replace(params=jax.tree.map(lambda a: a.astype(jnp.bfloat16), server.params)), info


def init_server(key, task):
    return COUNTING.init(key, task).server


def train_two(*args):
    return COUNTING.train(*args)[:2]


def send_text(round, server, profile):
    return {"params": server.params, "note": "hello"}


def send_function(round, server, profile):
    return MODEL.apply


def return_nothing(*args):
    return None


def receive_one(*args):
    return COUNTING.receive(*args)[1]


def merge_one(*args):
    return COUNTING.merge(*args)[0]


def predict_one(server, client, x):
    return MODEL.apply(server.params, x)[0]


BY_FUNCTION = {
    "init": (
        lambda: COUNTING._replace(init=init_server),
        "init=init_server: must return a State, and returns a Server of 2 with 4 arrays",
    ),
    "send": (
        lambda: COUNTING._replace(send=send_text),
        r"send=send_text: must return arrays alone, \['note'\] included, and returns 'hello'",
    ),
    "train": (
        lambda: COUNTING._replace(train=train_two),
        "train=train_two: must return 3 values, the client's state, an upload and Info, and returns "
        "a tuple of 2 with 5 arrays",
    ),
    "receive": (
        lambda: COUNTING._replace(receive=receive_one),
        "receive=receive_one: must return 2 values, the client's profile and a contribution, and returns "
        "a WeightedSum of 2 with 5 arrays",
    ),
    "merge": (
        lambda: COUNTING._replace(merge=merge_one),
        "merge=merge_one: must return 2 values, the server's state and Info or None, and returns "
        "a Server of 2 with 4 arrays",
    ),
    "predict": (
        lambda: COUNTING._replace(predict={"global": predict_one}),
        r"predict\['global'\]=predict_one: must return logits \[2, classes\], and returns an array \[3\]",
    ),
    "schedule": (
        lambda: COUNTING._replace(schedule=lambda index, draw: draw(index)),
        "schedule: must be a Schedule, and is a function",
    ),
}
"""One mistake in each function of the contract."""

COUNTS = {"visits": jnp.zeros(cases.NUM_CLIENTS, jnp.int32)}
ROWS = r"as \[9, ...\], one entry per client, and returns"

WRONG = BY_FUNCTION | {
    "no algorithm": (lambda: MODEL, "algorithm: must be a FederatedAlgorithm, and is a Model of 8"),
    "one client less": (
        lambda: init_with(clients=trees.replicate(jnp.zeros(2), 8)),
        rf"init=init_with.<lambda>: must return clients {ROWS} an array \[8, 2\]",
    ),
    "one profile": (
        lambda: init_with(profiles={"visits": jnp.float32(0)}),
        rf"init=init_with.<lambda>: must return profiles\['visits'\] {ROWS} an array \[\]",
    ),
    "no arrays in the state": (
        lambda: init_with(clients={**COUNTS, "name": "nine"}),
        r"must return arrays alone, .clients\['name'\] included, and returns 'nine'",
    ),
    "message of functions": (
        lambda: COUNTING._replace(send=send_function),
        "send=send_function: must return arrays alone, its result included, and returns a function",
    ),
    "nothing": (
        lambda: COUNTING._replace(train=return_nothing),
        "train=return_nothing: must return 3 values, .* and returns None",
    ),
    "another client": (
        lambda: train_with(client=jnp.zeros(3)),
        "train=train_with.train: must return the client's state like its argument, a dict of 1, and returns "
        r"an array \[3\]",
    ),
    "client of another shape": (
        lambda: train_with(client={"visits": jnp.zeros(2, jnp.int32)}),
        r"train=train_with.train: must return the client's state\['visits'\] as int32\[\], and returns "
        r"int32\[2\]",
    ),
    "client of another dtype": (
        lambda: train_with(client={"visits": jnp.float32(0)}),
        r"the client's state\['visits'\] as int32\[\], and returns float32\[\]",
    ),
    "upload of text": (
        lambda: train_with(upload=["a"]),
        r"train=train_with.train: must return arrays alone, \[0\] included, and returns 'a'",
    ),
    "no Info": (
        lambda: train_with(info={"loss": jnp.zeros(())}),
        "train=train_with.train: must return facts as Info, and returns a dict of 1",
    ),
    "facts as a list": (
        lambda: train_with(info=Info(extra=[jnp.zeros(())])),
        "must return Info.extra as a mapping from names to numbers, and returns a list of 1",
    ),
    "loss of many": (
        lambda: train_with(info=Info(loss=jnp.zeros(3))),
        r"must return a number as metric 'loss', and returns an array \[3\]",
    ),
    "metric of text": (
        lambda: train_with(info=Info(extra={"note": "good"})),
        "must return a number as metric 'note', and returns 'good'",
    ),
    "reserved name": (
        lambda: train_with(info=Info(extra={"flops": jnp.float32(1)})),
        "train=train_with.train: must not use the name 'flops' in Info.extra",
    ),
    "another profile": (
        lambda: receive_with(profile=()),
        "receive=receive_with.receive: must return the client's profile like its argument, a dict of 1, and "
        "returns a tuple of 0",
    ),
    "profile of another dtype": (
        lambda: receive_with(profile={"visits": jnp.float32(0)}),
        r"the client's profile\['visits'\] as int32\[\], and returns float32\[\]",
    ),
    "contribution of text": (
        lambda: receive_with(contribution="a"),
        "receive=receive_with.receive: must return arrays alone, its result included, and returns 'a'",
    ),
    "another server": (
        lambda: merge_with(lambda server, info: (server.params, info)),
        "merge=merge_with.merge: must return the server's state like its argument, a Server of 2 with 4 "
        "arrays, and returns a dict of 2 with 4 arrays",
    ),
    "merge of nothing": (
        lambda: COUNTING._replace(merge=return_nothing),
        "merge=return_nothing: must return 2 values, the server's state and Info or None, and returns None",
    ),
    "server of another dtype": (
        lambda: merge_with(in_bfloat16),
        r"the server's state.params\['dense1'\]\['bias'\] as float32\[8\], and returns bfloat16\[8\]",
    ),
    "metrics of merge": (
        lambda: merge_with(lambda server, info: (server, {"loss": 1.0})),
        "merge=merge_with.merge: must return facts as Info, and returns a dict of 1",
    ),
    "reserved name in merge": (
        lambda: merge_with(lambda server, info: (server, Info(extra={"loss": 1.0}))),
        "merge=merge_with.merge: must not use the name 'loss' in Info.extra",
    ),
    "one model": (
        lambda: COUNTING._replace(predict=predict_one),
        'predict: must map "global" or "personal", or both, to functions',
    ),
    "no model": (
        lambda: COUNTING._replace(predict={"other": predict_one}),
        'predict: must map "global" or "personal", or both, to functions',
    ),
}


def simulate(algorithm):
    return make_simulation(algorithm, cases.task(), cohort=3, chunk=1, plan="scan")


@pytest.mark.parametrize("name", WRONG)
def test_wrong_results_are_named_with_their_function(name):
    make, message = WRONG[name]
    with pytest.raises(UserError, match=message) as error:
        simulate(make())
    assert "\n" not in error.value.args[0]


WRAPPERS = {
    "codecs": lambda algorithm: with_codecs(algorithm, up=codecs.quantize(8), down=codecs.quantize(8)),
    "robust": lambda algorithm: with_robust_merge(algorithm, median()),
    "attack": lambda algorithm: with_attack(algorithm, "sign"),
    "first": lambda algorithm: in_sequence(algorithm, FEDAVG),
    "second": lambda algorithm: in_sequence(FEDAVG, algorithm),
}


def in_sequence(first, second):
    return then(first, second, done=lambda server: jnp.array(True), handover=lambda server, fresh: fresh)


# Every function in one wrapper, and in every wrapper those two that all of them replace.
PAIRS = [
    pytest.param(
        *(wrapper, function),
        marks=[] if wrapper == "codecs" or function in ("train", "receive") else pytest.mark.slow,
        id=f"{wrapper}-{function}",
    )
    for wrapper in WRAPPERS
    for function in BY_FUNCTION
]


@pytest.mark.parametrize(("wrapper", "function"), PAIRS)
def test_functions_inside_of_wrappers_are_named(wrapper, function):
    make, message = BY_FUNCTION[function]
    if wrapper in ("first", "second") and function == "schedule":
        message = "second.schedule: must equal first.schedule"
    with pytest.raises(UserError, match=f"^{message}"):
        simulate(WRAPPERS[wrapper](make()))


def in_several_wrappers(algorithm):
    for name in ("attack", "robust", "codecs", "first"):
        algorithm = WRAPPERS[name](algorithm)
    return algorithm


@pytest.mark.parametrize(
    "wrapper",
    [
        lambda algorithm: algorithm,
        in_several_wrappers,
        *(pytest.param(wrap, marks=pytest.mark.slow) for wrap in WRAPPERS.values()),
    ],
    ids=["none", "several", *WRAPPERS],
)
def test_a_sound_algorithm_passes_inside_of_wrappers(wrapper):
    assert simulate(wrapper(COUNTING)).num_clients == cases.NUM_CLIENTS


def test_logits_of_personal_models_are_checked_at_their_evaluation():
    simulation = simulate(COUNTING._replace(predict={"personal": predict_one}))
    with pytest.raises(
        UserError, match=r"^predict\['personal'\]=predict_one: must return logits \[100, classes\]"
    ):
        simulation.evaluate(simulation.init())


def test_checking_changes_no_result():
    data, state = cases.data_of(cases.task(), 3), COUNTING.init(jax.random.key(0), cases.task())
    client = jax.tree.map(lambda a: a[3], state.clients)
    arguments = (fm.Round(jax.random.key(1), jnp.int32(0)), state.server.params, client, data)
    checked = returns.with_checks(COUNTING, cases.NUM_CLIENTS)
    found, wanted = (jax.jit(algorithm.train)(*arguments) for algorithm in (checked, COUNTING))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert returns.name_of(checked.train) == "train_counting"


def test_a_functions_name_begins_with_its_factory():
    algorithm = fm.lotteryfl(MODEL, optax.sgd(0.1))
    assert returns.name_of(returns.with_checks(algorithm).receive) == "lotteryfl.receive"


def test_an_algorithm_may_report_nothing():
    def train(round, message, client, data):
        return client, message, Info()

    run = fm.simulate(FEDAVG._replace(train=train), cases.task(), rounds=2, cohort=3)
    assert run.records[-1]["round"] == 2
    assert run.records[-1]["client_flops"] is None


def test_work_may_be_stated_without_loops():
    """A training without a counted loop says in its facts what it has done."""
    work = Work(*map(jnp.float32, range(1, 6)))

    def train(round, message, client, data):
        return client, message, Info(jnp.float32(2), work, {"mine": jnp.float32(7)})

    simulation = simulate(FEDAVG._replace(train=train))
    train = simulation.run(simulation.init(), 0, 1)[1][0].train
    assert {name: values[0, 0] for name, values in train.items()} == {
        **work._asdict(),
        "loss": 2,
        "mine": 7,
    }


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
        ValueError,
        match=r"^(model='mine': must have (weighted|hidden|a convolution)|shared='': must be one of)",
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
