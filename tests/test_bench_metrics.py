"""The plain form that collapse is timed against computes the same measures."""

import json
from dataclasses import fields

import pytest

from experiments.bench import metrics as bench
from mcr2.metrics.collapse import NeuralCollapse


@pytest.mark.parametrize("N, d, K", [(400, 24, 4), (300, 6, 12), (120, 40, 10)])
@pytest.mark.parametrize("spread", [0.2, 1.0, 3.0])
def test_both_forms_agree(N, d, K, spread):
    data = bench.clusters(N, d, K, spread=spread)
    plain = bench.plain(*data)
    assert plain.keys() == {f.name for f in fields(NeuralCollapse)} - {
        *("means_reliable", "classes", "absent", "smallest_class")
    }
    assert bench.difference(plain, bench.ours(*data)) < 1e-5


def test_a_run_is_plain_numbers(capsys, monkeypatch):
    monkeypatch.setattr(bench, "SIZES", ((100, 5, 3),))
    result = json.loads(json.dumps(bench.run(repeats=1)))
    assert [row["spread"] for row in result["rows"]] == list(bench.SPREADS)
    for row in result["rows"]:
        assert (row["N"], row["d"], row["K"]) == (100, 5, 3)
        assert row["milliseconds"].keys() == row["extra_mib"].keys() == bench.FORMS.keys()
    lines = bench.table(result).splitlines()[1:]
    assert lines == capsys.readouterr().err.splitlines()
    assert all("100 x 5, K = 3" in line for line in lines)
