"""Client states around an algorithm's own."""

from collections.abc import Mapping

import jax

from fedjax_masks.core.algorithm import Predict
from fedjax_masks.core.types import PyTree


def inner_models(models: Mapping[str, Predict]) -> dict[str, Predict]:
    """An algorithm's models, for clients whose state holds the algorithm's own as ``inner``."""

    def on_inner(predict: Predict) -> Predict:
        def predict_inner(server: PyTree, client: PyTree, x: jax.Array) -> jax.Array:
            return predict(server, None if client is None else client.inner, x)

        return predict_inner

    return {name: on_inner(predict) for name, predict in models.items()}
