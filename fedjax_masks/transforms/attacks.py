"""Clients that send something else than they have learned, to test a server against."""

from typing import NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks.communication import codecs
from fedjax_masks.core import returns, trees
from fedjax_masks.core.algorithm import ClientData, FederatedAlgorithm, Info, Round, State, Task
from fedjax_masks.core.choices import AttackKind
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.options import Share, check
from fedjax_masks.core.types import PyTree
from fedjax_masks.transforms.wrapping import inner_models


class AttackingClient(NamedTuple):
    """The state of a client that may be hostile.

    Attributes:
      inner: The algorithm's own client state.
      hostile: ``bool[]``.
    """

    inner: PyTree
    hostile: jax.Array


def with_attack(
    algorithm: FederatedAlgorithm, kind: AttackKind, *, share: float = 0.2, factor: float = 1e3, seed: int = 0
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
      UserError: An argument is out of range; from ``train``, if an upload holds no floats.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=10)
      >>> algorithm = fm.fedavg(fm.models.mlp(task, hidden=(16,)), optax.sgd(0.1))
      >>> run = fm.simulate(with_attack(algorithm, "nan"), task, rounds=1, cohort=10)
      >>> run.records[-1]["clients_dropped"]
      2
    """
    if kind not in get_args(AttackKind):
        raise UserError(f"attack.kind={kind}: must be one of {', '.join(get_args(AttackKind))}")
    check("attack.share", share, Share)
    algorithm = returns.with_checks(algorithm)
    by = {"nan": float("nan"), "scale": factor, "sign": -1.0}[kind]

    def init(key: chex.PRNGKey, task: Task) -> State:
        state = algorithm.init(key, task)
        order = np.random.default_rng(seed).permutation(task.num_clients)
        hostile = jnp.asarray(order < round(share * task.num_clients))
        return state._replace(clients=AttackingClient(state.clients, hostile))

    def train(
        round: Round, message: PyTree, client: AttackingClient, data: ClientData
    ) -> tuple[AttackingClient, PyTree, Info]:
        inner, upload, info = algorithm.train(round, message, client.inner, data)
        if "float" not in (sent := codecs.kinds(upload)):
            raise UserError(
                f"attack.kind={kind}: must meet uploads of floats; these hold "
                f"{' and '.join(sorted(sent)) or 'nothing'}"
            )
        spoilt = codecs.map_floats(spoil, upload)
        return AttackingClient(inner, client.hostile), trees.where(client.hostile, spoilt, upload), info

    def spoil(leaf: jax.Array, sent: PyTree) -> jax.Array:
        return jnp.where(sent, leaf * by, leaf).astype(leaf.dtype)

    return algorithm._replace(init=init, train=train, predict=inner_models(algorithm.predict))
