"""Metrics of torchmetrics: what the function of all features in memory gives, however they come."""

import pickle
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
from torch import multiprocessing

from mcr2.metrics.coding import coding_measures
from mcr2.metrics.collapse import neural_collapse
from mcr2.metrics.moments import ClassMoments
from mcr2.metrics.rank import feature_rank, rank_of_moments

torchmetrics = pytest.importorskip("torchmetrics")
from mcr2.metrics.streaming import CollapseMetric, RankMetric, RateMetric  # noqa: E402

K, D, N = 4, 6, 300


def samples(dtype=torch.float32, seed=0, absent=None, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, K, (N,), generator=generator)
    centres = 3 * torch.randn(K, D, generator=generator, dtype=torch.float64)
    H = centres[y] + 5 + scale * torch.randn(N, D, generator=generator, dtype=torch.float64)
    y = y if absent is None else torch.where(y == absent, (absent + 1) % K, y)
    return H.to(dtype), y


W = torch.randn(K, D, generator=torch.Generator().manual_seed(9))
MAKE = {
    "collapse": lambda: CollapseMetric(K, D, weight=W),
    "rank": lambda: RankMetric(D),
    "rates": lambda: RateMetric(K, D),
}


def in_memory(kind, H, y):
    if kind == "rank":
        return asdict(feature_rank(H))
    if kind == "rates":
        found = asdict(coding_measures(H.double(), y, num_classes=K))
        return {name: value for name, value in found.items() if name != "class_rates"}
    found = asdict(neural_collapse(H, y, num_classes=K, weight=W))
    return {name: v for name, v in found.items() if name not in ("nc4", "absent")}


def feed(metric, H, y):
    """Update, or forward and return what is of the batch."""
    return metric(features=H) if isinstance(metric, RankMetric) else metric(features=H, labels=y)


def assert_same(found, wanted):
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert found[name].dtype == torch.float64
        wanted_value = float("nan") if value is None else float(value)
        assert found[name].item() == pytest.approx(wanted_value, rel=1e-5, nan_ok=True), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("absent", [None, 2])
@pytest.mark.parametrize("kind", MAKE)
def test_batches_give_what_all_features_give(kind, absent, dtype):
    H, y = samples(dtype, absent=absent)
    metric = MAKE[kind]()
    for part, labels in zip(torch.split(H, 37), torch.split(y, 37), strict=True):
        assert_same(feed(metric, part, labels), in_memory(kind, part, labels))
    assert_same(metric.compute(), in_memory(kind, H, y))


@pytest.mark.parametrize("kind", MAKE)
def test_reset_merge_clone_pickle_and_state_dict(kind):
    H, y = samples()
    left, right, fresh = (MAKE[kind]() for _ in range(3))
    feed(left, H[200:], y[200:])
    left.reset()
    feed(left, H[:100], y[:100])
    feed(right, H[100:], y[100:])
    before = {name: value.clone() for name, value in right.compute().items()}
    left.merge_state(right)
    assert_same(left.compute(), in_memory(kind, H, y))
    for name, value in right.compute().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)
    assert_same(pickle.loads(pickle.dumps(left)).compute(), in_memory(kind, H, y))
    clone = left.clone()
    feed(clone, H, y)
    assert_same(left.compute(), in_memory(kind, H, y))
    assert not left.state_dict()
    left.persistent(True)
    fresh.persistent(True)
    fresh.load_state_dict(left.state_dict())
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert_same(fresh.compute(), in_memory(kind, H, y))


def test_a_collection_takes_them_together():
    H, y = samples()
    metrics = torchmetrics.MetricCollection({kind: make() for kind, make in MAKE.items()})
    metrics.update(features=H, labels=y)
    found = metrics.compute()
    assert found["rate"].item() == pytest.approx(in_memory("rates", H, y)["rate"], rel=1e-5)
    assert found["nc1"].item() == pytest.approx(in_memory("collapse", H, y)["nc1"], rel=1e-5)
    assert found["dim95"].item() == feature_rank(H).dim95


def test_a_weight_is_followed_and_is_no_parameter_of_the_metric():
    H, y = samples()
    layer = torch.nn.Linear(D, K, bias=False)
    metric = CollapseMetric(K, D, weight=layer.weight)
    assert not list(metric.parameters())
    with torch.no_grad():
        layer.weight.copy_(W)
    metric.update(H.requires_grad_(), y)
    assert_same(metric.compute(), in_memory("collapse", H.detach(), y))
    without = CollapseMetric(K, D)
    without.update(H, y)
    assert not {n for n in without.compute() if n.startswith("nc3") or n.endswith("_w")}


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="num_classes is 1; it must be at least 2"):
        CollapseMetric(1, D)
    with pytest.raises(ValueError, match=r"weight has shape \(2, 6\); it must be \(4, 6\)"):
        CollapseMetric(K, D, weight=W[:2])
    with pytest.raises(ValueError, match="eps_sq is 0; it must be positive"):
        RateMetric(K, D, eps_sq=0)
    for make in MAKE.values():
        with pytest.raises(ValueError, match=r"features has shape \(3, 7\)"):
            feed(make(), torch.zeros(3, D + 1), torch.zeros(3, dtype=torch.int64))
        with (
            pytest.warns(UserWarning, match="before"),
            pytest.raises(ValueError, match="seen no sample"),
        ):
            make().compute()
    with pytest.raises(ValueError, match="labels run from 9 to 9"):
        RateMetric(K, D).update(torch.zeros(1, D), [9])
    with pytest.raises(ValueError, match="moments are of 2 classes; they must be of one"):
        rank_of_moments(ClassMoments(2, 3))


def test_features_without_spread_have_rank_zero():
    metric = RankMetric(D)
    for _ in range(3):
        metric.update(torch.full((20, D), 0.1))
    assert {value.item() for value in metric.compute().values()} == {0.0}


def _process(rank, file, kinds, queue):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=2
    )
    H, y = samples()
    cut = (slice(0, 90), slice(90, None))[rank]  # shares of different size
    found = {}
    for kind in kinds:
        metric = MAKE[kind]()
        for part, labels in zip(H[cut].chunk(3), y[cut].chunk(3), strict=True):
            feed(metric, part, labels)
            # Of both processes; afterwards the metric is this one's own again.
            found[kind] = {name: value.item() for name, value in metric.compute().items()}
    queue.put((rank, found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_have_what_one_has(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    arguments = (tmp_path / "meet", list(MAKE), queue)
    processes = [context.Process(target=_process, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    found = dict(queue.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    H, y = samples()
    for kind in MAKE:
        wanted = {name: float(value) for name, value in in_memory(kind, H, y).items()}
        assert found[0][kind] == found[1][kind] == pytest.approx(wanted, rel=1e-5, nan_ok=True)


def test_it_is_imported_only_when_used_and_says_what_is_missing():
    code = (
        "import sys, mcr2.metrics; assert 'torchmetrics' not in sys.modules\n"
        "sys.modules['torchmetrics'] = None\n"
        "import mcr2.metrics.streaming"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "needs torchmetrics: pip install 'mcr2-robustness[torchmetrics]'" in done.stderr
