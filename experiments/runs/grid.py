"""Recipe, methods, ratios, seeds and settings -> specs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from experiments.runs.methods import METHODS, find_method
from experiments.runs.recipes import Recipe
from experiments.runs.specs import RunSpec, vary
from mcr2.selection import NEED_VALIDATION, SELECTIONS

#: What all runs of a grid share, or what spans it: set by options of their own, not by ``--set``.
GRID_FIELDS = ("dataset", "subset", "image_size", "axes", "labels_are", "noise", "ratio", "seed")


def grid(
    recipe: Recipe,
    methods: Sequence[str],
    ratios: Sequence[float],
    seeds: Sequence[int],
    *,
    fields: Mapping[str, Any] | None = None,
    settings: Sequence[str] = (),
) -> list[RunSpec]:
    """Return the specs of a study, cheapest order for a reader: seed by seed, ratio by ratio.

    A recipe with an ``early_stopping_share`` makes two of each: one that holds nothing out, for
    every rule but those of early stopping, and one with that share for these. A ``validation``
    among the settings makes it one again, which serves what it can.

    Args:
        recipe: fills in everything but method, ratio and seed.
        methods: names of methods.
        ratios: shares of labels to redraw.
        seeds: runs of each.
        fields: fields of the spec that replace the recipe's.
        settings: ``FIELD=VALUE`` for all methods or ``METHOD.FIELD=VALUE`` for one.

    Raises:
        ValueError: an unknown method or field, a value that a spec refuses, a repetition.

    Example:
        >>> from experiments.runs.recipes import QUICK
        >>> specs = grid(QUICK, ["ce", "mcr2"], [0.0, 0.5], [0], settings=["mcr2.lr=0.02"])
        >>> [(s.method, s.ratio, s.training.lr == 0.02) for s in specs]
        [('ce', 0.0, False), ('mcr2', 0.0, True), ('ce', 0.5, False), ('mcr2', 0.5, True)]
    """
    for name, values in (("methods", methods), ("ratios", ratios), ("seeds", seeds)):
        if not values:
            raise ValueError(f"{name} is empty; give at least one")
        if len(set(values)) < len(values):
            raise ValueError(f"{name} has repetitions: {' '.join(map(str, values))}")
    found = {name: find_method(name) for name in methods}
    parsed = [_setting(text, methods) for text in settings]
    for owner, field, text in parsed:
        if field in GRID_FIELDS:
            raise ValueError(f"--set {field}={text}: {field} has an option of its own")
        # Raises where no method takes the field; where one does not, it is passed over below.
        takers = [found[owner]] if owner else list(found.values())
        vary(recipe.base, field, text, frozenset().union(*(m.options for m in takers)))
    optional = frozenset().union(*(method.options for method in found.values()))
    share, specs = recipe.early_stopping_share, []
    rest = tuple(rule for rule in SELECTIONS if rule not in NEED_VALIDATION)
    for seed, ratio, (name, method) in product(seeds, ratios, found.items()):
        spec = recipe.spec(name, additive=method.additive, ratio=ratio, seed=seed, **(fields or {}))
        own = [(owner, field, text) for owner, field, text in parsed if owner in (None, name)]
        for owner, field, text in own:
            if owner or field not in optional - method.options:
                spec = vary(spec, field, text, method.options)
        if share is None or {"validation", "selections"} & {field for _, field, _ in own}:
            specs.append(spec)
        else:
            specs.append(replace(spec, validation=0.0, selections=rest))
            specs.append(replace(spec, validation=share, selections=NEED_VALIDATION))
    return specs


def _setting(text: str, methods: Sequence[str]) -> tuple[str | None, str, str]:
    """Split ``[METHOD.]FIELD=VALUE``; a method's name may itself hold dots."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text!r} is not of the form [METHOD.]FIELD=VALUE")
    for method in methods:
        if name.startswith(f"{method}."):
            return method, name.removeprefix(f"{method}."), value
    owner = name.partition(".")[0]
    if owner in METHODS:
        raise ValueError(f"--set {text}: {owner} is not among the methods {' '.join(methods)}")
    return None, name, value
