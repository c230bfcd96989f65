"""The forms that the benchmark of ReduNet compares make the same layer."""

import json

import pytest
import torch

from experiments.bench import redunet as bench
from mcr2.redunet import ReduNet


def test_a_run_is_plain_numbers_and_forms_agree():
    sizes = [((24, (3, 4, 6), 3), 8.0), ((24, (2, 3, 5), 2), 8.0), ((40, (30,), 4), 3.0)]
    result = json.loads(json.dumps(bench.run(sizes, repeats=1)))
    assert [row["shape"] for row in result["rows"]] == [[3, 4, 6], [2, 3, 5], [30]]
    for row in result["rows"]:
        assert row["difference"] < 1e-4
        assert row["rates_difference"] < 1e-5
        assert row["ratio"] > 0
        assert row["seconds"].keys() == row["operators"].keys() == {"ours", "plain"}
    assert "3x4x6" in bench.table(result)


@pytest.mark.parametrize("shape", [(30,), (3, 4, 6)])
def test_what_is_timed_is_what_the_network_does(shape):
    X, labels = bench.samples(24, shape, 3)
    moved, (rate, compressed_rate), _ = bench.ours(X, labels, 3)
    net = ReduNet(layers=1, eta=bench.ETA, eps_sq=bench.EPS_SQ, lam=bench.LAM).fit(X, labels)
    torch.testing.assert_close(net(X), moved, atol=1e-5, rtol=0)
    assert rate == pytest.approx(net.history[0].rate, rel=1e-6)
    assert compressed_rate == pytest.approx(net.history[0].compressed_rate, rel=1e-6)
