"""PRNG keys of a simulation, its rounds and its clients."""

from typing import Any

import chex
import jax

SERVER_ID = 2**32 - 1
"""The id of the server among clients' ids, for its key; larger than any client's id."""


def simulation_keys(seed: Any) -> tuple[chex.PRNGKey, chex.PRNGKey]:
    """The key of the initial state, and the key of all rounds."""
    init_key, rounds_key = jax.random.split(jax.random.key(seed))
    return init_key, rounds_key


def round_key(key: chex.PRNGKey, index: jax.Array | int) -> chex.PRNGKey:
    """The key of round ``index``, from the key of all rounds."""
    return jax.random.fold_in(key, index)


def client_key(key: chex.PRNGKey, client_id: jax.Array | int) -> chex.PRNGKey:
    """A client's key in a round, from the key of the round; it does not depend on the client's lane."""
    return jax.random.fold_in(key, client_id)
