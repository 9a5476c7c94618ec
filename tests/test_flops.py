import jax
import jax.numpy as jnp
import pytest

from fedjax_masks.flops import count_flops
from fedjax_masks.ops import conv2d

X, FIRST, SECOND = jnp.ones((2, 9, 8, 3)), jnp.ones((3, 3, 3, 16)), jnp.ones((3, 3, 16, 5))


@pytest.mark.parametrize("lowering", ["canonical", "im2col", "winograd", "lax"])
def test_a_convolution_has_the_flops_of_its_definition(lowering):
    forward = lambda x, kernel: conv2d(x, kernel, lowering=lowering)
    definition = 2 * (2 * 9 * 8) * (3 * 3 * 3 * 16)
    assert count_flops(forward, X, FIRST) == definition
    batched = jax.vmap(forward, in_axes=(None, 0))
    assert count_flops(batched, X, jnp.stack([FIRST] * 4)) == 4 * definition


@pytest.mark.parametrize("lowering", ["canonical", "im2col", "winograd"])
def test_gradients_count_once_each_and_only_where_used(lowering):
    def loss(kernels):
        hidden = conv2d(X, kernels[0], lowering=lowering)
        return jnp.sum(conv2d(hidden, kernels[1], lowering=lowering) ** 2)

    first, second = 2 * (2 * 9 * 8) * FIRST.size, 2 * (2 * 9 * 8) * SECOND.size
    assert count_flops(jax.grad(loss), (FIRST, SECOND)) == 2 * first + 3 * second
