"""PRNG keys of a simulation, its rounds and its clients.

Every key derives from the seed of the run, the number of the round, and the id of the client. No key depends
on a position, so that the layout of clients, the order of a cohort and a resumption never change results.
"""

import chex
import jax

SERVER_ID = 2**32 - 1
"""The id of the server among clients' ids, for its key; larger than any client's id."""


def simulation_keys(seed: jax.typing.ArrayLike) -> tuple[chex.PRNGKey, chex.PRNGKey]:
    """The key of the initial state, and the key of all rounds."""
    init_key, rounds_key = jax.random.split(jax.random.key(seed))
    return init_key, rounds_key


def round_key(key: chex.PRNGKey, index: jax.Array | int) -> chex.PRNGKey:
    """The key of round ``index``, from the key of all rounds."""
    return jax.random.fold_in(key, index)


def client_key(key: chex.PRNGKey, client_id: jax.Array | int) -> chex.PRNGKey:
    """A client's key in a round, from the key of the round.

    The server has the key of :data:`SERVER_ID`.

    >>> _, rounds = simulation_keys(0)
    >>> draws = [jax.random.bits(client_key(round_key(rounds, 7), id)).item() for id in (3, 3, 4, SERVER_ID)]
    >>> len(set(draws))
    3
    """
    return jax.random.fold_in(key, client_id)
