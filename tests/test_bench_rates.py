"""The forms that the rates are timed against compute the same, and errors are what they are."""

import math

import pytest
import torch

from experiments.bench import Rates
from experiments.bench import rates as bench


@pytest.mark.parametrize("form", [bench.loop, bench.dense])
@pytest.mark.parametrize("m, d, K", [(60, 8, 3), (50, 30, 4)])
def test_forms_agree(form, m, d, K):
    Z, labels = bench.clusters(m, d, K, 1.0)
    for value, other in zip(
        bench.both_ways(bench.ours, Z, labels, K),
        bench.both_ways(form, Z if form is bench.loop else Z.float(), labels, K),
        strict=True,
    ):
        torch.testing.assert_close(value, other.double(), rtol=1e-4, atol=1e-5)


def test_rows_are_plain_numbers(monkeypatch):
    monkeypatch.setattr(bench, "SIZES", ((60, 8, 3),))
    monkeypatch.setattr(bench, "LARGE", ())
    monkeypatch.setattr(bench, "IMBALANCED", ((40, 6, 5),))
    monkeypatch.setattr(bench, "SIGNALS", ((12, 3, (5,), 2), (12, 2, (4, 3), 2)))
    monkeypatch.setattr(bench, "LARGEST", 100)
    rows = list(bench.measure(Rates(full=True, repeats=1, threads=1)))
    assert [row["problem"] for row in rows] == [
        *("60 x 8", "40 x 6, half in one", "12 x 3 x 5", "12 x 2 x 4 x 3")
    ]
    for row in rows:
        assert row["difference"] < 1e-5
        assert row["loop/ours"] == row["loop ms"] / row["ours ms"]
    assert [row["dense ms"] is None for row in rows] == [True, True, True, True]


def test_errors_are_small_or_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "CLUSTERS", ((40, 8, 2),))
    for row in bench.errors(bench.ours, torch.float32):
        refused = row["eps_sq"] < 1e-9 and row["spread"] == 0
        assert (row["value"] is None) == refused
        assert refused or (row["value"] < 1e-5 and row["gradient"] < 1e-4)
    lost = [row["value"] for row in bench.errors(bench.loop, torch.float32)]
    assert any(math.isnan(value) for value in lost) or max(lost) > 0.1
    bench.draw(str(tmp_path / "errors.png"))
    assert (tmp_path / "errors.png").stat().st_size > 0
    assert "ours, float64" in capsys.readouterr().out
