"""Branches of one client under a map over clients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_masks.core.branches import switch


def count_calls(calls, name):
    """A branch that counts the calls of the compiled program."""

    def branch(x, y):
        jax.debug.callback(lambda _: calls.append(name), x)
        return x + y, -y

    return branch


def double(x, y):
    return 2 * x, y


def run(function, *args):
    result = jax.jit(function)(*args)
    jax.effects_barrier()
    return result


@pytest.mark.parametrize("indices", [[0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1], [-1, 2, 0, 5]])
def test_every_client_gets_its_own_branch(indices):
    index, x = jnp.array(indices), jnp.arange(8.0).reshape(4, 2)
    branches = [double, lambda x, y: (x + y, -y)]
    mine = run(jax.vmap(lambda i, x: switch(i, branches, x, 1 + x[0])), index, x)
    theirs = run(jax.vmap(lambda i, x: jax.lax.switch(i, branches, x, 1 + x[0])), index, x)
    jax.tree.map(np.testing.assert_array_equal, mine, theirs)


@pytest.mark.parametrize(("indices", "number"), [([0, 0, 0], 0), ([0, 1, 1], 3), ([1, 1, 1], 3)])
def test_a_branch_is_computed_only_where_a_client_takes_it(indices, number):
    calls = []
    branches = [double, count_calls(calls, "second")]
    run(jax.vmap(lambda i, x: switch(i, branches, x, x)), jnp.array(indices), jnp.ones(3))
    assert len(calls) == number


def test_a_shared_index_runs_one_branch():
    calls = []
    branches = [count_calls(calls, "first"), count_calls(calls, "second")]
    x, y = jnp.ones(3), jnp.ones(())  # what does not vary between clients still has a result for each
    results = run(lambda i: jax.vmap(lambda x: switch(i, branches, x, y))(x), jnp.int32(1))
    assert calls == ["second"] * 3
    assert [result.shape for result in results] == [(3,), (3,)]


def test_maps_within_maps_skip_branches_that_nobody_takes():
    calls = []
    branches = [double, count_calls(calls, "second")]
    index = jnp.zeros((2, 3), int)
    runs = jax.vmap(jax.vmap(lambda i, x: switch(i, branches, x, x)))
    run(runs, index, jnp.ones((2, 3)))
    assert not calls
    run(runs, index.at[1, 2].set(1), jnp.ones((2, 3)))
    assert calls


def test_branches_with_keys_and_integers():
    keys = jax.random.split(jax.random.key(0), 2)
    branches = [lambda key, n: (key, n), lambda key, n: (jax.random.fold_in(key, 1), n + 1)]
    mine, n = jax.vmap(lambda i, key: switch(i, branches, key, jnp.int32(3)))(jnp.array([0, 1]), keys)
    assert jax.random.key_data(mine).tolist() == [
        jax.random.key_data(keys[0]).tolist(),
        jax.random.key_data(jax.random.fold_in(keys[1], 1)).tolist(),
    ]
    assert n.tolist() == [3, 4]
