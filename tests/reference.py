"""A second implementation of the parts of federated averaging: plain NumPy, float64, loops."""

import cases
import jax
import numpy as np

from fedjax_masks.core.training import shuffled_rows
from fedjax_masks.data.tasks import rows_of
from fedjax_masks.simulation.cohorts import draw_cohort
from fedjax_masks.simulation.keys import client_key, round_key


def layers(params):
    """The arrays of an MLP with one hidden layer: ``[w1, b1, w2, b2]``."""
    return [
        np.asarray(params[layer][name], np.float64)
        for layer in ("dense1", "dense2")
        for name in ("kernel", "bias")
    ]


def gradient(params, x, y):
    """Gradients of the mean cross-entropy."""
    w1, b1, w2, b2 = params
    pre = x @ w1 + b1
    hidden = np.maximum(pre, 0)
    logits = hidden @ w2 + b2
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    p /= len(y)
    back = (p @ w2.T) * (pre > 0)
    return [x.T @ back, back.sum(0), hidden.T @ p, p.sum(0)]


def rounds(task, *, seed, num, cohort):
    """The simulator's clients of each round, and their keys: ``[[(client, key), ...], ...]``."""
    _, root = jax.random.split(jax.random.key(seed))
    for index in range(num):
        key = round_key(root, index)
        ids = draw_cohort(seed, index, task.num_clients, cohort)
        yield [(client, client_key(key, client)) for client in ids]


def minibatches(task, client, key, *, batch_size, epochs):
    """The client's minibatches in the simulator's order."""
    data, size = cases.data_of(task, client), len(rows_of(task.train, client))
    for epoch in range(epochs):
        order_key = jax.random.fold_in(key, 2 * epoch)
        order = np.asarray(shuffled_rows(order_key, data, batch_size))[:size]
        for start in range(0, size, batch_size):
            picked = order[start : start + batch_size]
            yield task.inputs[picked].astype(np.float64), task.labels[picked]


def sgd(params, batches, *, lr, momentum=0.0, extra=lambda now: [0.0] * 4):
    """Parameters after SGD, whose gradients have ``extra(parameters)`` added to them; and its steps."""
    now, velocity, steps = [a.copy() for a in params], [0.0] * 4, 0
    for x, y in batches:
        grads = [g + e for g, e in zip(gradient(now, x, y), extra(now))]
        velocity = [momentum * v + g for v, g in zip(velocity, grads)]
        now = [a - lr * v for a, v in zip(now, velocity)]
        steps += 1
    return now, steps


def weighted_mean(values, weights):
    """The mean of lists of arrays."""
    return [sum(w * a for w, a in zip(weights, arrays)) / sum(weights) for arrays in zip(*values)]


def assert_close(params, expected):
    for a, b in zip(layers(params), expected):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
