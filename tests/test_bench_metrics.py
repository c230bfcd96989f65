"""The forms that the benchmark of metrics compares compute the same measures."""

import json

import pytest

from experiments.bench import metrics as bench


@pytest.mark.parametrize("N, d, K", [(400, 24, 4), (300, 6, 12), (120, 40, 10)])
@pytest.mark.parametrize("spread", [0.2, 1.0, 3.0])
def test_all_forms_agree(N, d, K, spread):
    data = bench.clusters(N, d, K, spread=spread)
    want = bench.ours(*data)
    assert set(want) == set(bench.COMPARED)
    for name, form in bench.FORMS.items():
        assert bench.difference(want, form(*data)) < 1e-5, name


def test_a_run_is_plain_numbers(monkeypatch):
    monkeypatch.setattr(bench, "_extra_mib", lambda *_: 1.5)
    result = json.loads(json.dumps(bench.run([(100, 5, 3)], threads=1, repeats=2)))
    assert [row["clusters"] for row in result["rows"]] == list(bench.SPREADS)
    for row in result["rows"]:
        assert (row["N"], row["d"], row["K"]) == (100, 5, 3)
        assert row["seconds"].keys() == row["extra_mib"].keys() == bench.FORMS.keys()
        assert row["ratio"].keys() == row["difference"].keys() == bench.FORMS.keys() - {"ours"}
    lines = bench.table(result).splitlines()
    assert sum("100x5" in line and "K=3" in line for line in lines) == len(bench.SPREADS)
