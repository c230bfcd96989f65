"""The benchmark of the rates runs, agrees with its oracle and says so in plain values."""

import json

from experiments.bench import rates


def test_every_form_is_timed_and_everything_is_plain():
    result = json.loads(json.dumps(rates.run(sizes=[(60, 8, 3), (50, 30, 4)], repeats=2)))
    for case in result["cases"]:
        assert set(case["times"]) == {"ours", "dense", "loop", "bare"}
        assert all(t["turns"] > 0 for t in case["times"].values())
        assert max(case["agreement"]["float32"].values()) < 1e-5
        assert max(case["agreement"]["float64"].values()) < 1e-10
    assert all(target["met"] for target in result["targets"])
    assert "(60, 8, 3): ours" in rates.table(result)


def test_a_membership_that_does_not_fit_is_skipped_by_name(monkeypatch):
    monkeypatch.setattr(rates, "_LARGEST_MEMBERSHIP", 1000)
    case = rates.run(sizes=[(60, 8, 3)], repeats=1)["cases"][0]
    assert "dense" not in case["times"]
    assert "(3, 60, 60)" in case["skipped"]["dense"]


def test_imbalanced_and_signal_cases(monkeypatch):
    monkeypatch.setattr(rates, "SIZES", [])
    monkeypatch.setattr(rates, "IMBALANCED", [(40, 6, 5)])
    monkeypatch.setattr(rates, "SIGNALS", [(12, 3, (5,), 2), (12, 2, (4, 3), 2)])
    cases = rates.run(repeats=1)["cases"]
    assert [case["kind"] for case in cases] == ["imbalanced", "signals", "signals"]
    assert all(max(case["agreement"]["float32"].values()) < 1e-5 for case in cases)
