"""Features without a network, ascended on ΔR, become what the theory says."""

import json

import pytest

from experiments.studies.free_features import (
    FreeFeatures,
    ascend,
    largest_reduction,
    reduction_at,
)


@pytest.mark.parametrize("seed", range(4))
def test_free_features_reach_orthogonal_isotropic_classes(seed):
    found = ascend(seed=seed)
    assert found.coherence < 1e-6
    assert sum(found.dimensions) == 40
    for q, values in zip(found.dimensions, found.singular_values, strict=True):
        assert float(values[0] / values[q - 1]) == pytest.approx(1, abs=1e-4)
        assert (values[q:] < 1e-6 * values[0]).all()
    # Classes may settle at 9, 10 and 11 dimensions where 10 each is best.
    assert max(found.dimensions) - min(found.dimensions) <= 2
    assert found.reduction[-1] == pytest.approx(found.at_dimensions, rel=1e-9)
    assert found.best * 0.995 <= found.reduction[-1] <= found.best * (1 + 1e-12)


@pytest.mark.parametrize("d, K, eps_sq", [(40, 4, 0.5), (12, 3, 2.0)])
def test_classes_of_equal_dimensions_have_the_closed_form(d, K, eps_sq):
    best = largest_reduction(d, K, eps_sq)
    assert reduction_at([d // K] * K, d, eps_sq) == pytest.approx(best, rel=1e-12)


def test_equal_dimensions_are_the_best_at_a_small_distortion_only():
    for eps_sq, better in ((0.1, False), (0.5, False), (2.0, True)):
        unequal = reduction_at([3, 4, 5], 12, eps_sq)
        assert (unequal > largest_reduction(12, 3, eps_sq)) == better


def test_the_study_leaves_rows_and_a_figure(tmp_path, capsys):
    assert FreeFeatures(out=tmp_path, seeds=(0, 5), d=8).prepare()() == 0
    rows = json.loads((tmp_path / "free_features.json").read_text())["rows"]
    assert [row["start"] for row in rows] == [0, 5]
    assert str(rows[1]["dimensions"]) in capsys.readouterr().out
    assert (tmp_path / "free_features.png").stat().st_size > 10_000
    for wrong, message in (({"d": 3}, "d is 3"), ({"eps_sq": 0.0}, "eps_sq is 0.0")):
        with pytest.raises(ValueError, match=message):
            FreeFeatures(**wrong).prepare()
