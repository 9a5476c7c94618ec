"""Ratios of devices: the share of a model that each tier trains, for FedSkel and HeteroFL."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from fedjax_masks.core.errors import UserError
from fedjax_masks.core.options import PositiveShare, check


def ratios_of(capability: np.ndarray, *, least: float = 0.1) -> tuple[tuple[float, ...], np.ndarray]:
    """Ratios with which every device finishes together with the most capable one.

    A device's ratio is its capability as a share of the largest one.

    Args:
      capability: ``float[num_clients]``, above 0, in any unit.
      least: The smallest ratio.

    Returns:
      The ratios that occur, in tenths, rounded down, and ``int32[num_clients]``: the index of each
      client's ratio among them.

    >>> ratios_of(np.array([1.2, 40.0, 2.5, 12.0]))
    ((0.1, 0.3, 1.0), array([0, 2, 0, 1], dtype=int32))
    """
    tenths = np.floor(10 * np.maximum(capability / np.max(capability), least) + 1e-6).astype(int)
    levels, tiers = np.unique(tenths, return_inverse=True)
    return tuple((levels / 10).tolist()), tiers.astype(np.int32)


def ratio_tiers(
    ratios: Sequence[float] | Literal["devices"], capability: np.ndarray | None
) -> tuple[Sequence[float], Callable[[np.ndarray], np.ndarray]]:
    """The ratio of every tier, and the tier of every client.

    Args:
      ratios: In (0, 1]; client ``i`` has ``ratios[i % len(ratios)]``. ``"devices"``: :func:`ratios_of`.
      capability: ``float[num_clients]``, for ``"devices"``.

    Returns:
      The ratios, one for each tier, and ``(client_ids) -> tiers``.

    Raises:
      UserError: A ratio is out of range, or the ratios are those of devices, and there are none.
    """
    if ratios != "devices":
        if not len(ratios):
            raise UserError("ratios=(): must be one ratio or more")
        for ratio in ratios:
            check("ratios", ratio, PositiveShare)
        return ratios, lambda ids: ids % len(ratios)
    if capability is None:
        raise UserError("ratios=devices: must be used for clients that have devices; add --devices SPEC")
    ratios, tiers = ratios_of(capability)
    return ratios, lambda ids: tiers[ids]
