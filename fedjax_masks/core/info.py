"""Facts as a flat mapping from names to metrics."""

import jax

from fedjax_masks.core.algorithm import Info, Work

RESERVED = ("loss", *Work._fields)
"""Names of metrics that ``Info.extra`` must not use."""


def metrics_of(info: Info) -> dict[str, jax.Array]:
    """Metrics by name: the loss and the fields of the work, unless they are None, and all extra metrics.

    >>> metrics_of(Info(loss=2.0, extra={"density": 0.5}))
    {'loss': 2.0, 'density': 0.5}
    """
    loss = {} if info.loss is None else {"loss": info.loss}
    work = {} if info.work is None else info.work._asdict()
    return {**loss, **work, **info.extra}
