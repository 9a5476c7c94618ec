"""Differential privacy of whole clients, and what it costs.

Clients clip their uploads and add noise (:func:`~fedjax_masks.transforms.compression.clip_and_noise`), the
server adds up.
What is guaranteed is (epsilon, delta)-differential privacy of everything that the server publishes, if

- all clients weigh the same (:func:`with_equal_weights`): under FedAvg's weights, by numbers of examples,
  a client of many would move the sum by more than the norm;
- the server sees the sum alone, as by secure aggregation, and merges it like a weighted mean: one upload
  has only its own, small part of the noise, so no median and no norm may be taken of single ones;
- nobody of a cohort drops out, and with it its noise.

Metrics of training are for the simulation's people, and are not part of what is protected. Noise is
drawn in floating point, good for a simulation; against an adversary it takes a discrete distribution.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp

from fedjax_masks.core.algorithm import Cohort, FederatedAlgorithm, PyTree


def with_equal_weights(algorithm: FederatedAlgorithm, size: float = 1.0) -> FederatedAlgorithm:
    """Lets every client weigh the same in the merge.

    Args:
      algorithm: An algorithm whose merge takes weighted means.
      size: The number of examples that every client is taken to have. The mean of all clients keeps
        what is measured against the total (SCAFFOLD's control variate).
    """

    def equal(weight: jax.Array) -> jax.Array:
        return jnp.where(weight > 0, jnp.float32(size), 0)

    def reduce(upload: PyTree, weight: jax.Array) -> PyTree:
        assert algorithm.reduce is not None
        return algorithm.reduce(upload, equal(weight))

    def merge(key: chex.PRNGKey, common: PyTree, server: PyTree, uploads: PyTree, cohort: Cohort) -> PyTree:
        cohort = cohort._replace(weight=equal(cohort.weight))
        return algorithm.merge(key, common, server, uploads, cohort)

    return algorithm._replace(reduce=algorithm.reduce and reduce, merge=merge)


def epsilon(
    *,
    clients: int,
    cohort: int,
    rounds: int,
    multiplier: float,
    delta: float | None = None,
    sampling: Literal["fixed", "poisson"] = "fixed",
) -> float:
    """The epsilon of a run, by Google's ``dp-accounting``.

    Args:
      clients: The number of all clients.
      cohort: Clients per round.
      rounds: Rounds.
      multiplier: The noise of a round's sum, in norms.
      delta: The probability that the guarantee does not cover; by default :func:`default_delta`.
      sampling: ``fixed`` is what this simulator does: cohorts of one size, drawn without
        replacement; neighbours differ in one client that is replaced by another, which moves the sum by
        up to two norms (Wang et al. 2019, arXiv 1808.00087, theorem 27). ``poisson`` is what most
        publications report: each client takes part with probability ``cohort / clients``, and
        neighbours have one client more or less.

    Raises:
      ValueError: An argument is out of range, or the package dp-accounting is not installed.

    >>> run = dict(clients=50, cohort=10, rounds=20)
    >>> epsilon(**run, multiplier=2.0) < epsilon(**run, multiplier=1.0)
    True
    """
    if not (1 <= cohort <= clients and rounds >= 1 and multiplier > 0):
        raise ValueError(
            f"epsilon: {clients=}, {cohort=}, {rounds=}, {multiplier=}; "
            "accepted are cohorts of 1 to all clients, at least 1 round, and a multiplier above 0"
        )
    delta = default_delta(clients) if delta is None else delta
    if not 0 < delta < 1:
        raise ValueError(f"epsilon: delta={delta}; accepted is above 0 and below 1")
    try:
        import dp_accounting
        from dp_accounting import pld, rdp
    except ModuleNotFoundError:
        raise ValueError("epsilon: the package dp-accounting is not installed") from None
    if sampling == "poisson":
        noise = dp_accounting.GaussianDpEvent(multiplier)
        accountant = pld.PLDAccountant()
        event = dp_accounting.PoissonSampledDpEvent(cohort / clients, noise)
    else:
        noise = dp_accounting.GaussianDpEvent(multiplier / 2)
        accountant = rdp.RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE)
        event = dp_accounting.SampledWithoutReplacementDpEvent(clients, cohort, noise)
    return float(accountant.compose(event, rounds).get_epsilon(delta))


def default_delta(clients: int) -> float:
    """``clients ** -1.1``, as McMahan et al. 2018 (arXiv 1710.06963, table 1) choose it."""
    return clients**-1.1
