from types import SimpleNamespace

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_masks as fm
from fedjax_masks.core.flops import count_flops
from fedjax_masks.data import synthetic_task
from fedjax_masks.models import cnn, mlp
from fedjax_masks.ops import conv, conv2d

X, FIRST, SECOND = jnp.ones((2, 9, 8, 3)), jnp.ones((3, 3, 3, 16)), jnp.ones((3, 3, 16, 5))


@pytest.mark.parametrize("lowering", ["canonical", "im2col", "winograd", "lax"])
def test_a_convolution_has_the_flops_of_its_definition(lowering):
    forward = lambda x, kernel: conv2d(x, kernel, lowering=lowering)
    definition = 2 * (2 * 9 * 8) * (3 * 3 * 3 * 16)
    assert count_flops(forward, X, FIRST) == definition
    batched = jax.vmap(forward, in_axes=(None, 0))
    assert count_flops(batched, X, jnp.stack([FIRST] * 4)) == 4 * definition


@pytest.mark.parametrize("lowering", ["canonical", "im2col", "winograd"])
def test_gradients_count_once_each_and_only_where_used(lowering):
    def loss(kernels):
        hidden = conv2d(X, kernels[0], lowering=lowering)
        return jnp.sum(conv2d(hidden, kernels[1], lowering=lowering) ** 2)

    first, second = 2 * (2 * 9 * 8) * FIRST.size, 2 * (2 * 9 * 8) * SECOND.size
    assert count_flops(jax.grad(loss), (FIRST, SECOND)) == 2 * first + 3 * second


IMAGES = SimpleNamespace(input_shape=(16, 16, 3), num_classes=10)
SGD = optax.sgd(0.1)
STEPS = {
    "dense layers": lambda: fm.fedavg(mlp(IMAGES, hidden=(200, 100)), SGD, batch_size=20),
    "convolutions": lambda: fm.fedavg(cnn(IMAGES), SGD, batch_size=20),
    "every other filter": lambda: fm.masked_fedavg(
        cnn(IMAGES), SGD, batch_size=20, filters=cases.every_other(cnn(IMAGES))
    ),
    "gates": lambda: fm.adp(cnn(IMAGES), SGD, batch_size=20),
    "skeleton": lambda: fm.fedskel(cnn(IMAGES), SGD, batch_size=20, ratios=(0.3,)),
    "skeleton, whole round": lambda: fm.fedskel(cnn(IMAGES), SGD, batch_size=20, ratios=(0.3,)),
}


BREADTH = ("skeleton", "dense layers", "every other filter", "gates", "skeleton, whole round")


@pytest.mark.parametrize(
    "name",
    [
        "convolutions",
        *(pytest.param(name, marks=pytest.mark.slow) for name in BREADTH),
    ],
)
def test_a_client_counts_what_xla_counts_in_its_compiled_step(name, monkeypatch):
    # Winograd's products are fewer than the definition's; the others' are the definition's.
    monkeypatch.setattr(conv, "_choose", lambda *args: conv.Lowerings("canonical", "canonical", "canonical"))
    algorithm = STEPS[name]()
    task = synthetic_task(IMAGES.input_shape, IMAGES.num_classes, [40] * 2)
    state = algorithm.init(jax.random.key(0), task)
    # Constants, so that only the branch that runs is compiled.
    round = fm.Round(jax.random.key(0), np.int32(name == "skeleton"))
    client, profile = (jax.tree.map(lambda leaf: leaf[1], rows) for rows in state[1:])
    message = algorithm.send(round, state.server, profile)
    data = cases.data_of(task, 1)
    train = jax.jit(lambda client, data: algorithm.train(round, message, client, data))
    compiled = train.lower(client, data).compile()
    done = compiled(client, data)[2].work
    assert done.steps == 2
    # XLA counts the loop's body once, elementwise operations, and no products with the padding's zeros.
    counted = compiled.cost_analysis()["flops"]
    np.testing.assert_allclose(done.flops / done.steps, counted, rtol=0.1)
