"""The forms that the benchmark of ReduNet compares make the same network."""

import json

from experiments.bench import redunet as bench


def test_a_run_is_plain_numbers_printed_row_by_row_and_forms_agree(capsys):
    sizes = [(24, (3, 4, 6), 3), (24, (2, 3, 5), 2), (40, (30,), 4)]
    result = json.loads(json.dumps(bench.run(sizes, repeats=1)))
    assert [row["shape"] for row in result["rows"]] == [[3, 4, 6], [2, 3, 5], [30]]
    for row in result["rows"]:
        assert row["difference"] < 1e-3
        assert row["rates_difference"] < 1e-5
        assert row["ratio"] > 0
        assert row["seconds"].keys() == {"ours", "plain"}
    assert "24 x 3x4x6" in capsys.readouterr().out
    assert "1 thread(s)" in bench.table(result)
