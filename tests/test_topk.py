"""Top-k as an algorithm: its uploads, its residuals, and its limit."""

import math

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_masks as fm
from fedjax_masks.communication import size
from fedjax_masks.communication.payload import Sparse
from fedjax_masks.core.algorithm import Round
from fedjax_masks.core.errors import UserError

SGD = optax.sgd(0.1)


@pytest.fixture(scope="module")
def model():
    return fm.models.mlp(cases.task(), hidden=(8,))


def train_once(algorithm):
    task = cases.task()
    state = algorithm.init(jax.random.key(0), task)
    client = jax.tree.map(lambda a: a[3], state.clients)
    round = Round(jax.random.key(1), jnp.int32(0))
    return algorithm.train(round, state.server.params, client, cases.data_of(task, 3))


def test_bytes(model):
    _, upload, _ = train_once(fm.topk(model, SGD, fraction=0.1))
    sizes = [6 * 8, 8, 8 * 3, 3]
    bits = [max(1, round(0.1 * n)) * (32 + math.ceil(math.log2(n))) for n in sizes]
    assert size.bits(upload) == sum(bits)


def test_the_largest_go_up_and_the_rest_stays(model):
    client, upload, _ = train_once(fm.topk(model, SGD, fraction=0.1))
    _, update, _ = train_once(fm.fedavg(model, SGD))
    for sent, left, whole in zip(
        jax.tree.leaves(upload, is_leaf=lambda node: isinstance(node, Sparse)),
        client.codec,
        jax.tree.leaves(update),
    ):
        flat, left = np.ravel(whole), np.ravel(left)
        keep = max(1, round(0.1 * flat.size))
        largest = np.argsort(-np.abs(flat))[:keep]
        assert set(np.asarray(sent.indices)) == set(largest)
        np.testing.assert_array_equal(flat[np.asarray(sent.indices)], sent.values)
        np.testing.assert_array_equal(left, np.where(np.isin(np.arange(flat.size), largest), 0, flat))
    client, _, _ = train_once(fm.topk(model, SGD, error_feedback=False))
    assert not jax.tree.leaves(client)


@pytest.mark.parametrize("fraction", [0.0, 1.5])
def test_fractions_out_of_range_are_refused(model, fraction):
    with pytest.raises(
        UserError, match=f"^fraction={fraction}: must be a finite number above 0 and at most 1"
    ):
        fm.topk(model, SGD, fraction=fraction)
