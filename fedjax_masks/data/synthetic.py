"""Synthetic data that can be learnt, for benchmarks and tests that must not depend on real data."""

from collections.abc import Sequence

import numpy as np

from fedjax_masks.core.errors import UserError
from fedjax_masks.core.task import Task
from fedjax_masks.data.tasks import index_of


def synthetic_task(
    input_shape: Sequence[int],
    num_classes: int,
    sizes: Sequence[int] | np.ndarray,
    *,
    seed: int = 0,
    test_per_client: int = 10,
    noise: float = 1.0,
    scale: float = 1.0,
) -> Task:
    """Draws a task: one random prototype per class, plus Gaussian noise; labels are uniform.

    >>> task = synthetic_task((28, 28, 1), 62, sizes=[20, 180])
    >>> task.inputs.shape, task.inputs.dtype.name, task.train.sizes.tolist()
    ((200, 28, 28, 1), 'float32', [20, 180])

    Args:
      input_shape: The shape of one example.
      num_classes: The number of classes.
      sizes: Training examples of each client, 1 or more.
      seed: The seed of prototypes, labels and noise.
      test_per_client: Test examples of each client.
      noise: The standard deviation around prototypes; that of the prototypes is 1.
      scale: The factor of all inputs.

    Returns:
      A task with float32 inputs.

    Raises:
      UserError: There is no client, or one without examples.
    """
    if not len(sizes) or min(sizes) < 1:
        raise UserError(f"sizes={list(sizes)}: must be one size of at least 1 per client")
    rng = np.random.default_rng(seed)
    prototypes = rng.standard_normal((num_classes, *input_shape), np.float32)

    def draw(num: int) -> tuple[np.ndarray, np.ndarray]:
        labels = rng.integers(num_classes, size=num, dtype=np.int32)
        spread = rng.standard_normal((num, *input_shape), np.float32)
        return np.float32(scale) * (prototypes[labels] + np.float32(noise) * spread), labels

    inputs, labels = draw(sum(sizes))
    test_inputs, test_labels = draw(test_per_client * len(sizes))
    train = index_of(np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1]))
    test = index_of(np.split(np.arange(len(test_labels)), len(sizes)))
    return Task("synthetic", inputs, labels, test_inputs, test_labels, train, test, num_classes, "iid")
