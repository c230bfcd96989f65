"""ReduNet's layers are the closed form, in every shape of data and every way of building them."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mcr2.rates import rate_reduction, shift_invariant_rate_reduction
from mcr2.redunet import STORES, RandomFilters, ReduNet
from mcr2.redunet.network import MEMBERSHIPS

SHAPES = [(6,), (23,), (40,), (3, 5), (2, 6), (4, 1), (3, 4, 5), (2, 3, 4), (30, 2, 2), (3, 1, 1)]


def samples(shape, counts=(7, 4, 9), *, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    means = torch.randn(len(counts), *shape, generator=generator, dtype=torch.float64)
    noise = torch.randn(len(labels), *shape, generator=generator, dtype=torch.float64)
    order = torch.randperm(len(labels), generator=generator)
    return (means[labels] + 0.7 * noise)[order].to(dtype), labels[order]


def circulant(z):
    """All circular shifts of one sample (C, ...) as columns, (C * T, T)."""
    axes = tuple(range(1, z.ndim))
    shifts = np.ndindex(*z.shape[1:]) if axes else [()]
    return np.stack([np.roll(z, shift, axes).ravel() for shift in shifts], axis=1)


def project(Z):
    norms = np.linalg.norm(Z.reshape(len(Z), -1), axis=1)
    return Z / norms.reshape(-1, *[1] * (Z.ndim - 1))


def oracle(Z, labels, K, *, eta, eps_sq, lam, membership):
    """One layer as the paper writes it, samples as columns, shifts as explicit circulants."""
    m, C = Z.shape[:2]

    def inverse(parts, n):
        D = np.concatenate(parts, axis=1) if parts else np.zeros((Z[0].size, 1))
        alpha = C / (n * eps_sq) if n else 0.0
        return alpha * np.linalg.inv(np.eye(len(D)) + alpha * D @ D.T)

    circ = [circulant(z) for z in Z]
    E = inverse(circ, m)
    members = [[c for c, y in zip(circ, labels, strict=True) if y == k] for k in range(K)]
    present = [k for k in range(K) if members[k]]
    Cs = {k: inverse(members[k], len(members[k])) for k in present}
    moved = []
    for z, y in zip(Z.reshape(m, -1), labels, strict=True):
        compressed = {k: Cs[k] @ z for k in present}
        if membership == "given":
            share = {k: float(k == y) for k in present}
        else:
            weights = {k: np.exp(-lam * np.linalg.norm(compressed[k])) for k in present}
            share = {k: w / sum(weights.values()) for k, w in weights.items()}
        drift = sum(len(members[k]) / m * share[k] * compressed[k] for k in present)
        moved.append(z + eta * (E @ z - drift))
    return project(np.stack(moved).reshape(Z.shape))


@pytest.mark.parametrize("membership", MEMBERSHIPS)
@pytest.mark.parametrize("shape", SHAPES)
def test_layers_equal_explicit_inverses_of_explicit_circulants(shape, membership):
    X, labels = samples(shape)
    # Class 2 of four has no sample.
    labels = labels + (labels == 2)
    setting = {"eta": 0.4, "eps_sq": 0.3, "lam": 2.0, "membership": membership}
    net = ReduNet(layers=3, **setting).fit(X, labels, num_classes=4)
    Z = project(X.numpy())
    for layer in range(3):
        want = oracle(Z, labels.tolist(), 4, **setting)
        # What a layer makes of any sample, the training ones among them, has estimated membership.
        one = ReduNet(layers=1, **setting).fit(torch.from_numpy(Z), labels, num_classes=4)
        guess = oracle(Z, labels.tolist(), 4, **{**setting, "membership": "estimated"})
        np.testing.assert_allclose(one(torch.from_numpy(Z)), guess, atol=1e-9, rtol=0)
        for name, tensor in one.layers[0].state_dict().items():
            torch.testing.assert_close(
                net.layers[layer].state_dict()[name], tensor, atol=1e-8, rtol=1e-8
            )
        Z = want
        if membership == "estimated":
            np.testing.assert_allclose(net(X, layers=layer + 1), Z, atol=1e-9, rtol=0)
    if membership == "estimated":
        np.testing.assert_allclose(net(X), Z, atol=1e-9, rtol=0)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.sampled_from(SHAPES),
    counts=st.lists(st.integers(0, 12), min_size=1, max_size=5).filter(any),
    seed=st.integers(0, 99),
    membership=st.sampled_from(MEMBERSHIPS),
)
def test_a_layer_equals_the_closed_form_for_any_classes(shape, counts, seed, membership):
    X, labels = samples(shape, counts, seed=seed)
    setting = {"eta": 0.5, "eps_sq": 0.5, "lam": 3.0}
    net = ReduNet(layers=1, membership=membership, **setting).fit(X, labels)
    K = int(labels.max()) + 1
    want = oracle(project(X.numpy()), labels.tolist(), K, membership="estimated", **setting)
    np.testing.assert_allclose(net(X), want, atol=1e-9, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_rates_by_layer_are_those_of_the_features(shape):
    X, labels = samples(shape)
    net = ReduNet(layers=2, eps_sq=0.3, lam=2.0).fit(X, labels)
    assert [rates.layers for rates in net.history] == [0, 1, 2]
    reduction = rate_reduction if len(shape) == 1 else shift_invariant_rate_reduction
    for rates, Z in (
        (net.history[0], torch.from_numpy(project(X.numpy()))),
        (net.history[2], net(X)),
    ):
        want = reduction(Z, labels, eps_sq=0.3)
        assert rates.rate == pytest.approx(float(want.rate), rel=1e-9)
        assert rates.compressed_rate == pytest.approx(float(want.compressed_rate), rel=1e-9)
        assert rates.reduction == pytest.approx(float(want.reduction), rel=1e-8)


@pytest.mark.parametrize("shape", [(8,), (3, 6), (2, 4, 5)])
def test_rate_reduction_grows_at_every_layer_along_its_gradient(shape):
    X, labels = samples(shape, (20, 30, 25))
    net = ReduNet(layers=40, eta=0.02, eps_sq=0.5, membership="given").fit(X, labels)
    values = [rates.reduction for rates in net.history]
    assert all(b > a for a, b in itertools.pairwise(values))


@pytest.mark.parametrize(
    "shape, lifted",
    [((3, 6), False), ((2, 7), False), ((2, 4, 5), False), ((2, 4, 5), True), ((3, 6, 4), True)],
)
def test_a_shift_of_the_input_shifts_the_output(shape, lifted):
    X, labels = samples(shape, dtype=torch.float32)
    dims = len(shape) - 1
    lifting = RandomFilters(shape[0], 5) if lifted else None
    net = ReduNet(layers=4, lam=20.0, lifting=lifting).fit(X, labels)
    Z = net(X)
    shifts, axes = (1, 2)[:dims], (2, 3)[:dims]
    moved = net(X.roll(shifts, axes))
    assert Z.shape == (len(X), 5 if lifted else shape[0], *shape[1:])
    assert float((moved - Z.roll(shifts, axes)).abs().max()) < 1e-5
    assert float((moved - Z).abs().max()) > 1e-2


@pytest.mark.parametrize("membership", MEMBERSHIPS)
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("shape", [(6,), (40,), (3, 4), (9, 2, 3)])
@pytest.mark.parametrize("batch_size", [1, 6, 100])
def test_batches_and_stores_change_nothing(shape, store, batch_size, membership):
    X, labels = samples(shape)
    setting = {"layers": 3, "lam": 2.0, "membership": membership}
    whole = ReduNet(**setting).fit(X, labels)
    net = ReduNet(**setting).fit(X, labels, batch_size=batch_size, store=store)
    torch.testing.assert_close(net(X), whole(X), atol=1e-10, rtol=0)
    np.testing.assert_allclose(net.history, whole.history, rtol=1e-9)


MEASURE = """
import torch
from mcr2.redunet import ReduNet

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

def fit(m, store):
    X = torch.ones(1, 64).expand(m, 64)     # one sample over and over takes no memory itself
    ReduNet(layers=1).fit(X, torch.arange(m) % 2, store=store)

fit(2000, "disk")
for store in ("disk", "memory"):
    before = peak()
    fit(150_000, store)
    print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read on Linux")
def test_memory_is_set_by_the_batch_where_features_are_not_kept():
    features = 150_000 * 64 * 4 / 2**20
    command = [sys.executable, "-c", MEASURE]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    disk, memory = map(float, told.split())
    assert disk < features / 4
    assert memory > features * 0.7


@pytest.mark.parametrize("counts", [(30, 30), (3, 2)])
def test_few_samples_a_class_are_kept_as_factors(counts):
    d = 20
    X, labels = samples((d,), counts)
    layer = ReduNet(layers=1).fit(X, labels).layers[0]
    kept = layer.factors if max(counts) < d / 2 else layer.compressions
    assert kept.numel() == sum(p.numel() for p in (layer.factors, layer.compressions))
    assert kept.numel() == 2 * d * (max(counts) if max(counts) < d / 2 else d)


@pytest.mark.parametrize("shape", [(8,), (40,), (3, 6), (2, 4, 5)])
def test_a_state_is_the_network(shape, tmp_path):
    X, labels = samples(shape, dtype=torch.float32)

    def lifting(seed):
        return RandomFilters(shape[0], 3, seed=seed) if len(shape) == 3 else None

    net = ReduNet(layers=3, lam=5.0, lifting=lifting(4)).fit(X, labels)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    again = ReduNet(lam=5.0, lifting=lifting(9))
    again.load_state_dict(load_file(tmp_path / "net.safetensors"))
    assert torch.equal(again(X), net(X))
    assert torch.equal(again.to(memory_format=torch.channels_last)(X), net(X))
    # Over another network's state, and moved to another precision.
    other = ReduNet(layers=1, lam=5.0, lifting=lifting(0)).fit(X[..., :4], labels)
    other.load_state_dict(net.state_dict())
    torch.testing.assert_close(other.double()(X).float(), net(X), atol=1e-4, rtol=0)
    missing = {k: v for k, v in net.state_dict().items() if k != "layers.1.expansion"}
    with pytest.raises(RuntimeError, match=r"layers\.1\.expansion"):
        ReduNet(lam=5.0, lifting=lifting(4)).load_state_dict(missing)


def test_a_state_of_another_precision_takes_its_lifting_along(tmp_path):
    for fitted, loaded in ((torch.float64, torch.float32), (torch.float32, torch.float64)):
        X, labels = samples((2, 4, 6), dtype=fitted)
        net = ReduNet(layers=2, lam=5.0, lifting=RandomFilters(2, 3, seed=4)).fit(X, labels)
        save_file(net.state_dict(), tmp_path / "net.safetensors")
        again = ReduNet(lam=5.0, lifting=RandomFilters(2, 3, seed=9).to(loaded))
        again.load_state_dict(load_file(tmp_path / "net.safetensors"))
        assert again.lifting.weight.dtype == fitted
        assert torch.equal(again(X), net(X))
    # Cut back to no layer at all, the lifting's precision is the network's.
    net.layers = torch.nn.ModuleList()
    assert torch.equal(net(X.double()), net(X))


def test_float32_agrees_with_float64_and_half_precision_with_float32():
    X, labels = samples((12,), (30, 40), dtype=torch.float32)
    net = ReduNet(layers=5, lam=5.0).fit(X, labels)
    exact = ReduNet(layers=5, lam=5.0).fit(X.double(), labels)
    assert net(X).dtype == torch.float32
    torch.testing.assert_close(net(X).double(), exact(X.double()), atol=1e-4, rtol=0)
    half = ReduNet(layers=5, lam=5.0).fit(X.half(), labels)
    assert half(X.half()).dtype == torch.float32
    torch.testing.assert_close(half(X.half()), net(X.half().float()), atol=1e-2, rtol=0)


def test_a_distortion_too_small_for_float32_is_constructed_in_float64():
    # One direction for all: I + α ZᵀZ has eigenvalues 1 and 1 + 6/ε², of which float32 keeps one.
    X = torch.ones(20, 6) * torch.linspace(-1, 1, 20)[:, None]
    net = ReduNet(layers=1, eps_sq=1e-9).fit(X, torch.arange(20) % 2)
    assert net.history[0].rate == pytest.approx(np.log1p(6e9) / 2, rel=1e-6)
    assert net.layers[0].expansion.dtype == torch.float32
    assert bool(torch.isfinite(net(X)).all())
    with pytest.raises(ValueError, match="eps_sq=1e-300 is too small"):
        ReduNet(layers=1, eps_sq=1e-300).fit(X, torch.arange(20) % 2)


def test_a_network_can_be_refined_by_back_propagation():
    X, labels = samples((6,))
    net = ReduNet(layers=2, lam=2.0).fit(X, labels)
    assert not any(p.requires_grad for p in net.parameters())
    net.requires_grad_()
    net(X).square()[:, 0].sum().backward()
    assert all(p.grad is not None for layer in net.layers for p in (layer.expansion, layer.gammas))
    X.requires_grad_()
    assert torch.autograd.gradcheck(net, (X[:2],), atol=1e-6)


def test_construction_stops_where_the_reduction_no_longer_grows():
    X, labels = samples((6,), (30, 30, 30))
    told = []
    net = ReduNet(layers=60, eta=3.0, eps_sq=0.1, patience=3, lam=50.0)
    net.fit(X, labels, progress=told.append)
    assert tuple(told) == net.history
    values = [rates.reduction for rates in net.history]
    assert len(values) < 61
    assert len(net.layers) == values.index(max(values)) == len(values) - 1 - 3
    Z = net(X)
    want = rate_reduction(Z, labels, eps_sq=0.1)
    assert float(want.reduction) == pytest.approx(max(values), rel=1e-9)


def test_edges_are_handled():
    X, labels = samples((6,))
    one_each = ReduNet(layers=3).fit(X[:3], torch.arange(3))
    assert bool(torch.isfinite(one_each(X)).all())
    # All samples alike, all samples zero, one class, one sample.
    alike = ReduNet(layers=3).fit(torch.ones(8, 5), torch.arange(8) % 2)
    torch.testing.assert_close(alike(torch.ones(1, 5)), torch.full((1, 5), 5**-0.5))
    nothing = ReduNet(layers=3).fit(torch.zeros(4, 5), torch.arange(4) % 2)
    assert torch.equal(nothing(torch.zeros(1, 5)), torch.zeros(1, 5))
    single = ReduNet(layers=3).fit(X, torch.zeros(len(X), dtype=torch.int64))
    torch.testing.assert_close(single(X), torch.nn.functional.normalize(X))
    assert [r.reduction for r in single.history] == pytest.approx([0] * 4, abs=1e-12)
    assert bool(torch.isfinite(ReduNet(layers=2).fit(X[:1], labels[:1])(X)).all())
    # An absent class is never estimated, and two networks that differ by one are the same.
    absent = ReduNet(layers=3).fit(X, labels, num_classes=5)
    torch.testing.assert_close(absent(X), ReduNet(layers=3).fit(X, labels)(X))


@pytest.mark.parametrize(
    "error, message, setting",
    [
        (ValueError, "layers is 0; it must be at least 1", {"layers": 0}),
        (TypeError, "layers must be an integer, not float", {"layers": 2.0}),
        (ValueError, "eta is 0; it must be positive", {"eta": 0}),
        (ValueError, "eps_sq is -1", {"eps_sq": -1}),
        (ValueError, "lam is -1", {"lam": -1}),
        (TypeError, "lam must be a number", {"lam": "1"}),
        (ValueError, "'true'; choose from estimated, given", {"membership": "true"}),
        (ValueError, "patience is 0", {"patience": 0}),
        (TypeError, "patience must be an integer, not bool", {"patience": True}),
        (ValueError, "'forward'; choose from backward, ortho", {"fft_norm": "forward"}),
    ],
)
def test_settings_are_checked(error, message, setting):
    with pytest.raises(error, match=message):
        ReduNet(**setting)


def test_numpy_numbers_are_numbers():
    X, y = samples((6,))
    sizes = {"num_classes": np.int64(3), "batch_size": np.int32(7)}
    net = ReduNet(layers=np.int64(2), eta=np.float32(0.5)).fit(X, y, **sizes)
    torch.testing.assert_close(net(X), ReduNet(layers=2).fit(X, y)(X))


def test_what_is_fitted_is_checked():
    X, y = samples((6,))
    net, small = ReduNet(layers=1), ReduNet(layers=1).fit(X, y)
    with pytest.raises(RuntimeError, match="no layers yet"):
        net(X)
    for error, message, call in (
        (TypeError, "X must be a floating tensor .*, not a torch.int64", lambda: net.fit(y, y)),
        (TypeError, "X must be a floating tensor .*, not a meta", lambda: net.fit(X.to("meta"), y)),
        (ValueError, r"X has shape \(6,\)", lambda: net.fit(X[0], y)),
        (ValueError, r"labels has shape \(19,\); it must", lambda: net.fit(X, y[1:])),
        (TypeError, "labels must be integers", lambda: net.fit(X, torch.eye(3)[y])),
        (ValueError, "labels run from 0 to 2; with 2", lambda: net.fit(X, y, num_classes=2)),
        (ValueError, "labels run from -1 to 1", lambda: net.fit(X, y - 1)),
        (ValueError, "batch_size is 0", lambda: net.fit(X, y, batch_size=0)),
        (ValueError, "choose from memory, disk", lambda: net.fit(X, y, store="cloud")),
        (ValueError, "X must be finite", lambda: net.fit(X / (torch.arange(6) != 2), y)),
        (ValueError, "X must be finite", lambda: small(X * torch.nan)),
        (ValueError, r"X has shape \(20, 5\)", lambda: small(X[:, 1:])),
        (ValueError, "layers is 2; it must be between 0 and 1", lambda: small(X, layers=2)),
        (TypeError, "layers must be an integer, not float", lambda: small(X, layers=1.5)),
    ):
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize("dtype, far", [(torch.float32, 36), (torch.float64, 300)])
def test_samples_of_any_size_are_projected(dtype, far):
    X, labels = samples((6,), dtype=dtype)
    want = ReduNet(layers=3, lam=2.0).fit(X, labels)
    for scale in (10.0**far, 1e20, 1e-20, 10.0**-far):
        net = ReduNet(layers=3, lam=2.0).fit(X * scale, labels)
        torch.testing.assert_close(net(X), want(X), atol=1e-4, rtol=0)
        torch.testing.assert_close(want(X * scale), want(X), atol=1e-4, rtol=0)
    signals, labels = samples((2, 4, 6), dtype=dtype)
    net = ReduNet(layers=1, lifting=RandomFilters(2, 3))
    net.lifting.weight.mul_(100)
    with pytest.raises(ValueError, match="what the lifting made must be finite"):
        net.fit(signals / signals.abs().max() * (0.99 * torch.finfo(dtype).max), labels)


def test_a_step_that_overflows_is_refused():
    X, labels = samples((6,), dtype=torch.float32)
    with pytest.raises(ValueError, match=r"layer 1: features overflow; eta=1e\+30 is too large"):
        ReduNet(layers=3, eta=1e30).fit(X, labels)


@pytest.mark.parametrize("shape", [(6,), (3, 5), (2, 4, 3)])
def test_the_authors_settings_mean_the_same_network_in_their_convention(shape):
    """Their layer, by an orthonormal DFT and one explicit inverse a frequency and class."""
    X, y = samples(shape)
    eta, eps_sq, lam = 0.4, 0.3, 2.0
    net = ReduNet(layers=2, eta=eta, eps_sq=eps_sq, lam=lam, fft_norm="ortho").fit(X, y)
    axes = tuple(range(2, 1 + len(shape)))
    y, m, C = y.numpy(), len(y), shape[0]
    V = np.fft.fftn(project(X.numpy()), axes=axes, norm="ortho") if axes else project(X.numpy())

    def operators(V):
        alpha, flat = C / (len(V) * eps_sq), V.reshape(len(V), C, -1)
        return [
            alpha * np.linalg.inv(np.eye(C) + alpha * flat[..., f].T @ flat[..., f].conj())
            for f in range(flat.shape[-1])
        ]

    def apply(operators, V):
        flat = V.reshape(m, C, -1)
        out = [flat[..., f] @ A.T for f, A in enumerate(operators)]
        return np.stack(out, axis=-1).reshape(V.shape)

    for _ in range(2):
        compressed = np.stack([apply(operators(V[y == k]), V) for k in range(3)])
        norms = np.linalg.norm(compressed.reshape(3, m, -1), axis=2)
        share = np.exp(-lam * norms) / np.exp(-lam * norms).sum(0)
        weighed = share * np.bincount(y)[:, None] / m
        drift = (weighed.reshape(3, m, *[1] * len(shape)) * compressed).sum(0)
        V = project(V + eta * (apply(operators(V), V) - drift))
    Z = np.fft.ifftn(V, axes=axes, norm="ortho").real if axes else V
    np.testing.assert_allclose(net(X), Z, atol=1e-9, rtol=0)
    # Ours, with all three multiplied by the number of positions.
    T = int(np.prod(shape[1:]))
    ours = ReduNet(layers=2, eta=T * eta, eps_sq=T * eps_sq, lam=T * lam).fit(
        X, torch.from_numpy(y)
    )
    assert torch.equal(ours(X), net(X))


def test_features_behind_several_layers_come_in_one_pass():
    X, labels = samples((3, 5))
    net = ReduNet(layers=4, lam=2.0).fit(X, labels)
    found = net.by_layer(X, (3, 0, 4))
    assert found.keys() == {0, 3, 4}
    assert all(torch.equal(Z, net(X, layers=depth)) for depth, Z in found.items())


def test_liftings_are_checked_and_convolve_circularly():
    lift = RandomFilters(2, 4, kernel_size=3, seed=3)
    X, _ = samples((2, 5, 7), dtype=torch.float32)
    # Filter entry (i, j) meets the image moved by as much: a sum over all circular shifts.
    want = sum(
        np.einsum("fc,mchw->mfhw", lift.weight[..., i, j], X.roll((1 - i, 1 - j), (2, 3)))
        for i, j in itertools.product(range(3), repeat=2)
    )
    np.testing.assert_allclose(lift(X), want.clip(min=0), atol=1e-5)
    assert not torch.equal(lift.weight, RandomFilters(2, 4, seed=4).weight)
    with pytest.raises(ValueError, match=r"it must be \(m, 2, H, W\)"):
        lift(X[:, :1])
    with pytest.raises(ValueError, match="a filter of side 3 is longer"):
        lift(X[:, :, :2])
    with pytest.raises(TypeError, match=r"kernel_size must be an integer, not float 2\.5"):
        RandomFilters(1, 2, kernel_size=2.5)
    for setting, message in (
        ({"kernel_size": -1}, "kernel_size is -1"),
        ({"kernel_size": 2}, "kernel_size is 2; it must be odd"),
        ({"channels": 0}, "channels is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            RandomFilters(**({"in_channels": 1, "channels": 2} | setting))
