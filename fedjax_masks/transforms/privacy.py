"""Differential privacy of whole clients, and what it costs.

Clients clip their uploads and add noise (:func:`~fedjax_masks.communication.codecs.clip_and_noise`), the
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

import jax
import jax.numpy as jnp

from fedjax_masks.core.algorithm import FederatedAlgorithm, Round
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.types import PyTree


def with_equal_weights(algorithm: FederatedAlgorithm, size: float = 1.0) -> FederatedAlgorithm:
    """Lets every client weigh the same in the merge.

    Args:
      algorithm: An algorithm whose merge takes weighted means.
      size: The number of examples that every client is taken to have. The mean of all clients keeps
        what is measured against the total (SCAFFOLD's control variate).
    """

    def receive(
        round: Round, server: PyTree, profile: PyTree, upload: PyTree, weight: jax.Array
    ) -> tuple[PyTree, PyTree]:
        equal = jnp.where(weight > 0, jnp.float32(size), 0)
        return algorithm.receive(round, server, profile, upload, equal)

    return algorithm._replace(receive=receive)


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
      UserError: An argument is out of range, or the package dp-accounting is not installed.

    >>> run = dict(clients=50, cohort=10, rounds=20)
    >>> epsilon(**run, multiplier=2.0) < epsilon(**run, multiplier=1.0)
    True
    """
    if not (1 <= cohort <= clients and rounds >= 1 and multiplier > 0):
        raise UserError(
            f"epsilon: {clients=}, {cohort=}, {rounds=}, {multiplier=}: "
            "must be a cohort of 1 to all clients, 1 round or more, and a multiplier above 0"
        )
    delta = default_delta(clients) if delta is None else delta
    if not 0 < delta < 1:
        raise UserError(f"epsilon: delta={delta}: must be above 0 and below 1")
    try:
        import dp_accounting
        from dp_accounting import pld, rdp
    except ModuleNotFoundError:
        raise UserError("epsilon: must have the package dp-accounting: pip install dp-accounting") from None
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
