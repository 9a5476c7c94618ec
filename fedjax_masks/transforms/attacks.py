"""Clients that send something else than they have learned, to test a server against."""

from typing import Any, Literal, NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks.core import returns, trees
from fedjax_masks.core.algorithm import ClientData, FederatedAlgorithm, Metrics, PyTree, State, Task
from fedjax_masks.transforms import compression

Kind = Literal["nan", "scale", "sign"]


class AttackingClient(NamedTuple):
    """The state of a client that may be hostile.

    Attributes:
      inner: The algorithm's own client state.
      hostile: ``bool[]``.
    """

    inner: PyTree
    hostile: jax.Array


def with_attack(
    algorithm: FederatedAlgorithm,
    kind: Kind,
    *,
    share: float = 0.2,
    factor: float = 1000.0,
    seed: int = 0,
) -> FederatedAlgorithm:
    """Lets a share of the clients spoil the floats of their uploads; all else they do honestly.

    Args:
      algorithm: Any algorithm whose uploads hold floats.
      kind: ``nan`` sends NaN, ``scale`` its upload times ``factor``, ``sign`` its upload negated.
      share: Share of all clients that is hostile, rounded to a whole number of them; a cohort may by
        chance hold more.
      factor: For ``scale``.
      seed: Decides which clients.

    Returns:
      An algorithm whose client state is an :class:`AttackingClient`.

    Raises:
      ValueError: An argument is out of range; from ``train``, if an upload holds no floats.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=10)
      >>> algorithm = fm.fedavg(fm.models.mlp(task, hidden=(16,)), optax.sgd(0.1))
      >>> run = fm.simulate(with_attack(algorithm, "nan"), task, rounds=1, cohort=10)
      >>> run.records[-1]["clients_dropped"]
      2
    """
    if kind not in get_args(Kind):
        raise ValueError(f"with_attack: kind={kind!r}; accepted are {', '.join(get_args(Kind))}")
    if not 0 <= share <= 1:
        raise ValueError(f"with_attack: share={share}; accepted is at least 0 and at most 1")
    algorithm = returns.checked(algorithm)
    by = {"nan": float("nan"), "scale": factor, "sign": -1.0}[kind]

    def init(key: chex.PRNGKey, task: Task) -> State:
        state = algorithm.init(key, task)
        order = np.random.default_rng(seed).permutation(task.num_clients)
        hostile = jnp.asarray(order < round(share * task.num_clients))
        return state._replace(clients=AttackingClient(state.clients, hostile))

    def train(
        key: chex.PRNGKey, common: PyTree, message: PyTree, client: AttackingClient, data: ClientData
    ) -> tuple[AttackingClient, PyTree, Metrics]:
        inner, upload, metrics = algorithm.train(key, common, message, client.inner, data)
        if "float" not in (found := compression.kinds(upload)):
            raise ValueError(
                f"with_attack: uploads hold {' and '.join(sorted(found)) or 'nothing'}; accepted are floats"
            )
        spoilt = compression.map_floats(_spoil, upload)
        return AttackingClient(inner, client.hostile), trees.where(client.hostile, spoilt, upload), metrics

    def _spoil(leaf: jax.Array, sent: Any) -> jax.Array:
        return jnp.where(sent, leaf * by, leaf).astype(leaf.dtype)

    return algorithm._replace(
        init=init,
        train=train,
        predict=algorithm.predict and compression.on_inner(algorithm.predict),
        probes={name: compression.on_inner(probe) for name, probe in algorithm.probes.items()},
    )
