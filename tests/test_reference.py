"""FedAvg against a second implementation: plain NumPy, float64, loops."""

import cases
import jax
import numpy as np
import optax
import pytest

import fedjax_masks as fm
from fedjax_masks.data.tasks import rows_of
from fedjax_masks.local import shuffled_rows
from fedjax_masks.simulation import make_simulation
from fedjax_masks.simulation.cohorts import draw_cohort
from fedjax_masks.simulation.round import client_key, round_key


def softmax_gradient(params, x, y):
    """Gradients of the mean cross-entropy of an MLP with one hidden layer."""
    (w1, b1), (w2, b2) = params
    pre = x @ w1 + b1
    hidden = np.maximum(pre, 0)
    logits = hidden @ w2 + b2
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    p /= len(y)
    back = (p @ w2.T) * (pre > 0)
    return [(x.T @ back, back.sum(0)), (hidden.T @ p, p.sum(0))]


def reference_fedavg(params, task, *, seed, rounds, cohort, lr, batch_size, epochs):
    """McMahan et al. 2017, algorithm 1, with the simulator's order of clients and examples."""
    _, root = jax.random.split(jax.random.key(seed))
    for index in range(rounds):
        total, weight = None, 0
        for client in draw_cohort(seed, index, task.num_clients, cohort):
            key = client_key(round_key(root, index), client)
            data = cases.data_of(task, client)
            size = len(rows_of(task.train, client))
            mine = [(w.copy(), b.copy()) for w, b in params]
            for epoch in range(epochs):
                order_key = jax.random.fold_in(key, 2 * epoch)
                order = np.asarray(shuffled_rows(order_key, data, batch_size))[:size]
                for start in range(0, size, batch_size):
                    picked = order[start : start + batch_size]
                    grads = softmax_gradient(
                        mine, task.inputs[picked].astype(np.float64), task.labels[picked]
                    )
                    mine = [(w - lr * dw, b - lr * db) for (w, b), (dw, db) in zip(mine, grads)]
            part = [(size * w, size * b) for w, b in mine]
            total = part if total is None else [(tw + w, tb + b) for (tw, tb), (w, b) in zip(total, part)]
            weight += size
        params = [(w / weight, b / weight) for w, b in total]
    return params


@pytest.mark.parametrize("plan", ["scan", "blocks:4"])
def test_fedavg_is_the_textbook_algorithm(plan):
    task = cases.task()
    algorithm = fm.fedavg(fm.models.mlp(task, hidden=(8,)), optax.sgd(0.1), batch_size=4, epochs=2)
    simulation = make_simulation(algorithm, task, cohort=5, seed=7, chunk=3, plan=plan)
    state = simulation.init()
    layers = lambda params: [
        (np.asarray(params[name]["kernel"], np.float64), np.asarray(params[name]["bias"], np.float64))
        for name in ("dense1", "dense2")
    ]
    expected = reference_fedavg(
        layers(state.server.params), task, seed=7, rounds=3, cohort=5, lr=0.1, batch_size=4, epochs=2
    )
    state, _ = simulation.run(state, 0, 3)
    for (w, b), (we, be) in zip(layers(state.server.params), expected):
        np.testing.assert_allclose(w, we, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(b, be, rtol=1e-5, atol=1e-6)


def test_every_example_is_seen_once_per_epoch():
    task = cases.task()
    for client in range(task.num_clients):
        data = cases.data_of(task, client)
        rows = np.asarray(shuffled_rows(jax.random.key(client), data, 4))
        mine = rows_of(task.train, client)
        assert sorted(rows[: len(mine)]) == sorted(mine)
