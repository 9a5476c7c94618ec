from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fedjax_masks.core import target
from fedjax_masks.core.flops import count_flops
from fedjax_masks.ops import conv2d, conv_general_dilated, max_pool
from fedjax_masks.ops.norm import batch_norm
from fedjax_masks.ops.pool import relu_max_pool
from fedjax_masks.ops.skeleton import add_bias, dense

OWN = ["canonical", "im2col", "col2im", "winograd"]
CASES = [  # input [B, H, W, C], kernel [h, w, O], strides, padding
    ((2, 9, 8, 3), (3, 3, 4), (1, 1), "SAME"),
    ((2, 9, 8, 3), (3, 3, 4), (1, 1), "VALID"),
    ((2, 9, 8, 3), (3, 3, 4), (2, 2), "SAME"),
    ((1, 8, 8, 1), (3, 3, 5), (2, 2), "VALID"),
    ((1, 7, 5, 2), (3, 2, 4), (2, 1), ((2, 1), (0, 3))),
    ((3, 5, 6, 2), (1, 1, 3), (2, 2), "VALID"),
    ((2, 4, 4, 2), (4, 4, 3), (1, 1), "VALID"),
    ((1, 5, 5, 2), (2, 2, 3), (1, 1), ((3, 0), (2, 4))),
    ((2, 9, 12, 2), (5, 5, 3), (1, 1), "SAME"),
    ((2, 7, 7, 2), (5, 5, 3), (1, 1), "VALID"),
    ((2, 12, 12, 16), (3, 3, 4), (1, 1), "SAME"),
]


def fits(lowering, kernel_shape, strides):
    height, width = kernel_shape[:2]
    return lowering != "winograd" or (height == width and 2 <= height <= 5 and strides == (1, 1))


def reference(x, kernel, strides, padding):
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def draw(rng, shape, kernel, dtype):

    def normal(*s):
        return jnp.asarray(rng.standard_normal(s), dtype)

    return normal(*shape), normal(*kernel[:2], shape[3], kernel[2]), normal


@partial(jax.jit, static_argnums=0)
def value_and_vjp(f, x, kernel, dy):
    y, vjp = jax.vjp(f, x, kernel)
    return y, *vjp(dy)


SKELETON = jnp.array([0, 2])


def inside(case):
    return np.isin(np.arange(case[1][2]), SKELETON)


HALVES = {"even": CASES[::2], "odd": CASES[1::2]}
EACH_HALF = pytest.mark.parametrize("half", ["even", pytest.param("odd", marks=pytest.mark.slow)])


def of_cases(half, lowering, convolve):
    """In one program, the outputs of the cases, and gradients for two gradients of an output.

    The second is zero outside of the skeleton. Gradients are those of input, kernel and bias.
    """
    chosen = [case for case in HALVES[half] if fits(lowering, case[1], case[2])]
    arguments = [drawn(case) for case in chosen]

    @jax.jit
    def program(arguments):
        found = []
        for case, (*inputs, dy) in zip(chosen, arguments):
            y, pull = jax.vjp(partial(convolve, case), *inputs)
            found.append((y, pull(dy), pull(jnp.where(inside(case), dy, 0))))
        return found

    return dict(zip(chosen, program(arguments)))


@cache
def drawn(case):
    """Input, kernel, bias, and a gradient of the output."""
    shape, kernel_shape, strides, padding = case
    x, kernel, normal = draw(np.random.default_rng(0), shape, kernel_shape, jnp.float64)
    plain = partial(reference, strides=strides, padding=padding)
    return x, kernel, normal(kernel_shape[2]), normal(*jax.eval_shape(plain, x, kernel).shape)


@cache
def by_lax(half):
    return of_cases(half, "lax", lambda case, x, kernel, bias: reference(x, kernel, *case[2:]) + bias)


@EACH_HALF
@pytest.mark.parametrize("lowering", OWN)
def test_conv_and_both_gradients_equal_lax_in_float64(lowering, half):
    with jax.enable_x64(True):
        found = of_cases(
            half,
            lowering,
            lambda case, x, kernel, bias: (
                bias + conv2d(x, kernel, strides=case[2], padding=case[3], lowering=lowering)
            ),
        )
        for case, (got, gradients, _) in found.items():
            want, wanted, _ = by_lax(half)[case]
            for a, b in zip((got, *gradients), (want, *wanted), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("lowering", OWN)
def test_float32_error_is_rounding(lowering):
    x, kernel, normal = draw(np.random.default_rng(1), (4, 12, 11, 16), (3, 3, 8), jnp.float32)
    dy = normal(4, 10, 9, 8)
    own = partial(conv2d, padding="VALID", lowering=lowering)
    got = value_and_vjp(own, x, kernel, dy)
    with jax.enable_x64(True):
        exact = [jnp.asarray(np.asarray(a), jnp.float64) for a in (x, kernel, dy)]
        want = value_and_vjp(lambda x, k: reference(x, k, (1, 1), "VALID"), *exact)
    # Of the mean square: the largest of thousands of errors depends on how a machine orders additions.
    # Minimal filtering rounds more; col2im adds up the places of several images in one sum.
    limit = {"winograd": 5e-7, "col2im": 2e-7}.get(lowering, 1e-7)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == jnp.float32
        error = np.asarray(a) - np.asarray(b)
        assert np.sqrt(np.mean(error**2)) < limit * np.abs(np.asarray(b)).max()


@pytest.mark.parametrize("lowering", OWN)
def test_conv_inside_scan_and_under_vmap_of_kernels(lowering):
    rng = np.random.default_rng(2)
    strides = (2, 2) if fits(lowering, (3, 3), (2, 2)) else (1, 1)

    def gradients(conv):
        return lambda args: jax.value_and_grad(lambda x, k: jnp.sum(jnp.sin(conv(x, k))), (0, 1))(*args)

    with jax.enable_x64(True):
        xs, kernels = jnp.asarray(rng.standard_normal((3, 2, 6, 7, 2))), rng.standard_normal((3, 3, 3, 2, 4))
        kernels = jnp.asarray(kernels)
        own = gradients(lambda x, k: conv2d(x, k, strides=strides, lowering=lowering))
        want = [gradients(lambda x, k: reference(x, k, strides, "SAME"))(args) for args in zip(xs, kernels)]
        want = jax.tree.map(lambda *a: jnp.stack(a), *want)
        for got in (jax.jit(jax.vmap(own))((xs, kernels)), jax.jit(partial(lax.map, own))((xs, kernels))):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), got, want)


def test_unused_input_gradient_is_not_computed():
    x, kernel = jnp.ones((1, 6, 6, 2)), jnp.ones((3, 3, 2, 4))

    def convolutions(argnums):
        loss = lambda x, k: jnp.sum(conv2d(x, k, padding="VALID", lowering="canonical") ** 2)
        return jax.jit(jax.grad(loss, argnums)).lower(x, kernel).compile().as_text().count(" convolution(")

    assert convolutions((0, 1)) == convolutions(1) + 1


@pytest.mark.parametrize("options", [{}, {"feature_group_count": 2}, {"kernel_dilation": 2}, {"strides": 2}])
def test_flax_layer_gives_the_same_output_and_gradients(options):
    x = jnp.asarray(np.random.default_rng(3).standard_normal((2, 7, 6, 4)), jnp.float32)
    own = nn.Conv(6, (3, 3), conv_general_dilated=conv_general_dilated, **options)
    plain = nn.Conv(6, (3, 3), **options)
    params = plain.init(jax.random.key(0), x)
    got, want = (
        jax.jit(jax.value_and_grad(lambda p, layer=layer: jnp.sum(jnp.sin(layer.apply(p, x)))))(params)
        for layer in (own, plain)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5), got, want)


def test_one_dimensional_convolution_is_left_to_lax():
    x, kernel = jnp.ones((1, 5, 2)), jnp.ones((3, 2, 4))
    numbers = ("NWC", "WIO", "NWC")
    got = conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=numbers)
    want = lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=numbers)
    np.testing.assert_array_equal(got, want)


def test_unknown_lowering_is_refused():
    with pytest.raises(
        ValueError, match=r"lowering=fft: must be one of canonical, im2col, col2im, winograd, lax"
    ):
        conv2d(jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1, 1)), lowering="fft")  # type: ignore[arg-type]


@pytest.mark.parametrize(("kernel", "strides"), [((3, 2), (1, 1)), ((6, 6), (1, 1)), ((3, 3), (2, 2))])
def test_winograd_refuses_what_it_cannot_do(kernel, strides):
    with pytest.raises(
        ValueError, match=r"lowering='winograd': must have strides \(1, 1\) and a square kernel"
    ):
        conv2d(jnp.ones((1, 8, 8, 1)), jnp.ones((*kernel, 1, 1)), strides=strides, lowering="winograd")


def test_default_lowering_halves_the_products_of_a_large_convolution():
    x, kernel = jnp.ones((1, 26, 26, 16)), jnp.ones((3, 3, 16, 16))

    def products(lowering):
        program = jax.jit(lambda x, k: conv2d(x, k, lowering=lowering)).lower(x, kernel).compile()
        return program.cost_analysis()["flops"]

    assert products(None) < 0.6 * products("lax")


@pytest.mark.parametrize(
    ("shape", "window"), [((2, 6, 8, 3), (2, 2)), ((1, 7, 9, 2), (2, 3)), ((1, 3, 5, 1), (1, 2))]
)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_max_pool_and_gradient_equal_reduce_window(shape, window, ties, platform):
    rng = np.random.default_rng(4)
    x = rng.standard_normal(shape)
    x = jnp.asarray(np.round(x) if ties else x, jnp.float32)
    plain = lambda x: nn.max_pool(x, window, window)
    dy = jnp.asarray(rng.standard_normal(jax.eval_shape(plain, x).shape), jnp.float32)

    @jax.jit
    def both(x, dy):
        (y, pull), (want, plain_pull) = jax.vjp(lambda x: max_pool(x, window), x), jax.vjp(plain, x)
        return (y, pull(dy)), (want, plain_pull(dy))

    with target.making_for(target.Target(platform)):
        jax.tree.map(np.testing.assert_array_equal, *both(x, dy))


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_a_rectified_pool_is_the_pool_of_what_is_rectified(platform):
    x = jnp.asarray(np.random.default_rng(4).standard_normal((2, 6, 8, 3)), jnp.float32)
    dy = jnp.ones((2, 3, 4, 3))
    with target.making_for(target.Target(platform)):
        y, pull = jax.vjp(relu_max_pool, x)
        want, plain_pull = jax.vjp(lambda x: nn.max_pool(nn.relu(x), (2, 2), (2, 2)), x)
    np.testing.assert_array_equal(y, want)
    np.testing.assert_array_equal(pull(dy)[0], plain_pull(dy)[0])


# None, the default, chooses among the others.
@EACH_HALF
@pytest.mark.parametrize(
    "lowering",
    [
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("canonical", "im2col", "lax")),
        *("winograd", None),
    ],
)
def test_skeleton_gradients_are_those_of_an_output_gradient_that_is_zero_elsewhere(lowering, half):
    def layer(case, x, kernel, bias):
        _, _, strides, padding = case
        y = conv2d(x, kernel, strides=strides, padding=padding, lowering=lowering, skeleton=SKELETON)
        return add_bias(y, bias, skeleton=SKELETON)

    with jax.enable_x64(True):
        for case, (got, gradients, _) in of_cases(half, lowering, layer).items():
            want, _, wanted = by_lax(half)[case]
            for a, b in zip((got, *gradients), (want, *wanted), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)
            _, dk, db = gradients
            assert not np.any(np.where(inside(case), 0, dk))
            assert not np.any(np.where(inside(case), 0, db))


def test_skeleton_of_a_dense_layer():
    random = np.random.default_rng(5)
    x, kernel, dy = (jnp.asarray(random.standard_normal(s), jnp.float32) for s in ((3, 4), (4, 6), (3, 6)))
    pulled = jax.jit(lambda layer, dy: jax.vjp(layer, x, kernel)[1](dy), static_argnums=0)
    want = pulled(jnp.matmul, np.where(np.isin(np.arange(6), SKELETON), dy, 0))
    for a, b in zip(pulled(partial(dense, skeleton=SKELETON), dy), want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("lowering", ["canonical", "im2col", "lax"])
@pytest.mark.parametrize("keep", [3, 6, 13])
def test_compiled_flops_of_the_backward_pass_fall_with_the_skeleton(lowering, keep):
    """By XLA's own count. Minimal filtering has transforms besides, which are not all of the skeleton."""
    x, kernel = jnp.ones((4, 8, 8, 32)), jnp.ones((3, 3, 32, 32))

    def backward_flops(skeleton):
        _, pull = jax.vjp(partial(conv2d, lowering=lowering, skeleton=skeleton), x, kernel)
        counted = count_flops(pull, jnp.ones((4, 8, 8, 32)))
        return counted, jax.jit(pull).lower(jnp.ones((4, 8, 8, 32))).compile().cost_analysis()["flops"]

    counted, compiled = backward_flops(jnp.arange(keep))
    all_counted, all_compiled = backward_flops(None)
    assert counted == all_counted * keep / 32
    assert compiled / all_compiled == pytest.approx(keep / 32, rel=0.1)


@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_batch_norm_and_its_gradients_equal_the_definition_in_float64(offset):
    rng = np.random.default_rng(0)
    x, dy = rng.normal(offset, 2.0, (4, 5, 3, 6)), rng.normal(size=(4, 5, 3, 6))
    scale, bias, axes, epsilon = rng.normal(size=6), rng.normal(size=6), (0, 1, 2), 1e-3
    inverse = 1 / np.sqrt(x.var(axes) + epsilon)
    normal = (x - x.mean(axes)) * inverse
    pull = scale * dy
    centred = pull - pull.mean(axes) - normal * (pull * normal).mean(axes)
    expected = normal * scale + bias, centred * inverse, (dy * normal).sum(axes), dy.sum(axes)

    found, vjp = jax.vjp(lambda *args: batch_norm(*args, epsilon), *map(jnp.float32, (x, scale, bias)))
    for got, wanted in zip((found, *vjp(jnp.float32(dy))), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_batch_norm_of_a_constant_channel_is_its_bias():
    y, vjp = jax.vjp(lambda x: batch_norm(x, jnp.ones(2), jnp.array([1.0, 2.0]), 1e-5), jnp.full((8, 2), 7.3))
    np.testing.assert_allclose(y, jnp.array([[1.0, 2.0]] * 8), atol=1e-2)
    assert np.isfinite(vjp(jnp.ones((8, 2)))[0]).all()
