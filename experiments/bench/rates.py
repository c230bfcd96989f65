"""What coding rates cost, forward and backward, beside other ways to compute them.

In one process, at a stated thread count, the forms take turns; a turn is as many calls in a row as
take 30 ms, one at least, and a form's time is the median over its turns of the mean call. Only
ratios of such medians are worth comparing between machines.

    ours    mcr2.rates
    dense   the form of the public code: a (K, m, m) membership, built from the labels in a loop
            over samples by NumPy in float64 and then converted, and log-determinants of Z Π_k Zᵀ
            (its one-hot detour and its second, unused set of determinants are left out)
    loop    a Python loop over classes with torch.logdet
    bare    only the matrix products that no exact method can avoid: the total Gram, the class
            Grams on their smaller side, one backward product for each

Signals are measured against a loop over all frequencies and classes, and against the bare
products on half the spectrum. Two cores of a current server take about two minutes.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.runs.memory import peak_mib, restart_peak
from mcr2.rates import (
    Rates,
    class_coding_rates,
    coding_rate,
    rate_reduction,
    shift_invariant_rate_reduction,
)

EPS_SQ = 0.5
SIZES = [
    (1000, 128, 10),
    (1000, 128, 100),
    (1000, 512, 10),
    (2000, 512, 100),
    (4096, 512, 1000),
    (10000, 128, 10),
]
# Half of the samples in one class, the others in a hundred.
IMBALANCED = [(1000, 128, 101), (2000, 512, 101)]
SIGNALS = [(200, 16, (64,), 10), (100, 15, (28, 28), 10)]  # m, C, positions, K
TARGETS = [  # (m, d, K), what, at least or at most
    ((1000, 128, 10), "times faster than dense", ">=", 40.0),
    ((1000, 128, 10), "times faster than loop", ">=", 3.5),
    ((1000, 128, 100), "times faster than loop", ">=", 25.0),
    ((2000, 512, 100), "times faster than loop", ">=", 40.0),
    ((1000, 512, 10), "times bare", "<=", 1.5),
    ((2000, 512, 100), "times bare", "<=", 1.5),
    ((4096, 512, 1000), "times bare", "<=", 1.5),
    ((10000, 128, 10), "peak MB", "<=", 64.0),
]
# A dense membership of more bytes than this is not built.
_LARGEST_MEMBERSHIP = 2**30
_TURN_S = 0.03


def run(
    sizes: Sequence[tuple[int, int, int]] | None = None,
    threads: int = 1,
    repeats: int = 15,
    budget_s: float = 8.0,
) -> dict[str, Any]:
    """Measure times, peak memory and agreement with a float64 oracle.

    Args:
        sizes: balanced problems (m, d, K); by default :data:`SIZES`, and the imbalanced and the
            signal cases.
        threads: how many threads PyTorch may use.
        repeats: turns of each form.
        budget_s: seconds after which a form takes no further turn. One whose first turn took
            longer than half of them is not measured again.

    Returns:
        Plain values, ready for JSON: the machine, ``cases`` and, where measured, ``targets``.

    Example:
        >>> result = run(sizes=[(30, 4, 3)], repeats=1)
        >>> sorted(result["cases"][0]["times"])
        ['bare', 'dense', 'loop', 'ours']
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        cases = [_balanced(*size, repeats, budget_s) for size in sizes or SIZES]
        if sizes is None:
            cases += [_imbalanced(*size, repeats, budget_s) for size in IMBALANCED]
            cases += [_signals(*size, repeats, budget_s) for size in SIGNALS]
    finally:
        torch.set_num_threads(before)
    return {
        "what": "coding rates, forward and backward of ΔR, float32",
        "processor": _processor(),
        "threads": threads,
        "torch": torch.__version__,
        "eps_sq": EPS_SQ,
        "memory": (
            "growth of the resident set to its high-water mark in one forward and backward, "
            "after freed memory was returned to the system; null where the system does not tell"
        ),
        "agreement": (
            "largest relative difference from a float64 oracle (determinants class by class, "
            "differentiated by autograd), of gradients in the Frobenius norm"
        ),
        "cases": cases,
        "targets": _targets(cases),
    }


def table(result: dict[str, Any]) -> str:
    """Lay a result of :func:`run` out as text, a case a line."""
    lines = [f"{result['what']}; {result['threads']} thread(s); milliseconds, ratios, MB"]
    for case in result["cases"]:
        times = "  ".join(f"{form} {t['median_ms']:.2f}" for form, t in case["times"].items())
        ratios = "  ".join(f"{name} {value:.2f}" for name, value in case["ratios"].items())
        peak = case["peak_mb"].get("ours")
        memory = "" if peak is None else f"  peak {peak:.0f}"
        worst = max(case["agreement"]["float32"].values())
        lines.append(f"{case['name']}: {times} | {ratios} |{memory}  error {worst:.1e}")
        lines += [f"    {form} skipped: {why}" for form, why in case["skipped"].items()]
    lines += [
        f"{'met   ' if t['met'] else 'MISSED'} {t['case']} {t['what']}: {t['value']:.3g} "
        f"({t['bound']})"
        for t in result["targets"]
    ]
    return "\n".join(lines)


# --- cases --------------------------------------------------------------------------------------


def _balanced(m: int, d: int, K: int, repeats: int, budget_s: float) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    Z, labels = _features(m, d, generator), _shuffled(torch.arange(m) % K, generator)
    forms = {
        "ours": _both_ways(_ours(labels, K), Z),
        "loop": _both_ways(lambda X: _loop(X, labels, K), Z),
        "bare": _bare(Z, labels, K),
    }
    skipped = {}
    size = 4 * K * m * m
    if size <= _LARGEST_MEMBERSHIP:
        forms["dense"] = _both_ways(lambda X: _dense(X, labels, K), Z)
    else:
        skipped["dense"] = f"a ({K}, {m}, {m}) membership takes {size / 2**30:.1f} GiB"
    case = _measure(f"({m}, {d}, {K})", forms, repeats, budget_s)
    case["skipped"] |= skipped
    case["agreement"] = {
        name: _agreement(Z.to(dtype), labels, K)
        for name, dtype in (("float32", torch.float32), ("float64", torch.float64))
    }
    return {"kind": "balanced", "m": m, "d": d, "K": K, **case}


def _imbalanced(m: int, d: int, K: int, repeats: int, budget_s: float) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    Z = _features(m, d, generator)
    even = _shuffled(torch.arange(m) % K, generator)
    halves = (torch.arange(m) < m // 2, 0, 1 + torch.arange(m) % (K - 1))
    uneven = _shuffled(torch.where(*halves), generator)
    forms = {
        "ours": _both_ways(_ours(uneven, K), Z),
        "balanced": _both_ways(_ours(even, K), Z),
        "loop": _both_ways(lambda X: _loop(X, uneven, K), Z),
    }
    case = _measure(f"({m}, {d}, {K}) half in one class", forms, repeats, budget_s)
    case["agreement"] = {"float32": _agreement(Z, uneven, K)}
    return {"kind": "imbalanced", "m": m, "d": d, "K": K, **case}


def _signals(
    m: int, C: int, positions: tuple[int, ...], K: int, repeats: int, budget_s: float
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    Z = torch.randn(m, C, *positions, generator=generator) / C**0.5
    labels = _shuffled(torch.arange(m) % K, generator)

    def ours(X: Tensor) -> Tensor:
        return shift_invariant_rate_reduction(X, labels, num_classes=K, eps_sq=EPS_SQ).reduction

    forms = {
        "ours": _both_ways(ours, Z),
        "loop": _both_ways(lambda X: _signal_loop(X, labels, K), Z),
        "bare": _bare_signals(Z, labels, K),
    }
    name = f"signals ({m}, {C}, {', '.join(map(str, positions))}), {K} classes"
    case = _measure(name, forms, repeats, budget_s)
    exact = _value_and_gradient(lambda X: _signal_loop(X, labels, K), Z.double())
    case["agreement"] = {"float32": _differences(_value_and_gradient(ours, Z), exact)}
    return {"kind": "signals", "m": m, "C": C, "positions": list(positions), "K": K, **case}


def _measure(
    name: str, forms: dict[str, Callable[[], object]], repeats: int, budget_s: float
) -> dict[str, Any]:
    # Once a block of this size was freed, glibc keeps smaller ones instead of handing them back to
    # the system: the state that a training process is in.
    block = torch.ones(2**22)
    del block
    turns: dict[str, list[float]] = {}
    remaining: dict[str, float] = {}
    calls: dict[str, int] = {}
    for form, call in forms.items():
        first = _seconds(call)  # warms up, so that a quick form's says little of a turn's length
        turns[form] = [first] if first > budget_s / 2 else []
        remaining[form] = budget_s - first
        again = first if first > _TURN_S * 10 else _seconds(call)
        calls[form] = max(1, round(_TURN_S / again))
    for _ in range(repeats):
        for form, call in forms.items():
            cost = turns[form][-1] * calls[form] if turns[form] else 0.0
            if remaining[form] > cost:
                spent = _seconds(call, calls[form])
                remaining[form] -= spent
                turns[form].append(spent / calls[form])
    times = {
        form: {
            "median_ms": 1e3 * statistics.median(t),
            "min_ms": 1e3 * min(t),
            "turns": len(t),
        }
        for form, t in turns.items()
    }
    ours = times["ours"]["median_ms"]
    ratios = {
        f"times faster than {form}": times[form]["median_ms"] / ours
        for form in ("dense", "loop")
        if form in times
    }
    ratios |= {
        f"times {form}": ours / times[form]["median_ms"]
        for form in ("bare", "balanced")
        if form in times
    }
    peaks = {form: _peak_mb(call) for form, call in forms.items() if form != "balanced"}
    return {"name": name, "times": times, "ratios": ratios, "peak_mb": peaks, "skipped": {}}


def _targets(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    targets = []

    def add(case: str, what: str, value: float | None, sign: str, bound: float) -> None:
        if value is not None:
            met = value >= bound if sign == ">=" else value <= bound
            row = {"case": case, "what": what, "value": value, "bound": f"{sign} {bound:g}"}
            targets.append({**row, "met": met})

    for case in cases:
        for size, what, sign, bound in TARGETS:
            if case["kind"] == "balanced" and (case["m"], case["d"], case["K"]) == size:
                value = case["peak_mb"]["ours"] if what == "peak MB" else case["ratios"].get(what)
                add(case["name"], what, value, sign, bound)
        if case["kind"] == "imbalanced":
            add(case["name"], "times balanced", case["ratios"]["times balanced"], "<=", 2.0)
        for dtype, bound in (("float32", 1e-5), ("float64", 1e-10)):
            if dtype in case["agreement"]:
                worst = max(case["agreement"][dtype].values())
                add(case["name"], f"largest difference in {dtype}", worst, "<=", bound)
    return targets


# --- the forms ----------------------------------------------------------------------------------


def _ours(labels: Tensor, K: int) -> Callable[[Tensor], Tensor]:
    return lambda X: rate_reduction(X, labels, num_classes=K, eps_sq=EPS_SQ).reduction


def _loop(Z: Tensor, labels: Tensor, K: int) -> Tensor:
    m, d = Z.shape
    eye = torch.eye(d, dtype=Z.dtype)
    reduction = torch.logdet(eye + d / (m * EPS_SQ) * Z.T @ Z) / 2
    for k in range(K):
        X = Z[labels == k]
        n = len(X)
        if n:
            class_rate = torch.logdet(eye + d / (n * EPS_SQ) * X.T @ X) / 2
            reduction = reduction - n / m * class_rate
    return reduction


def _dense(Z: Tensor, labels: Tensor, K: int) -> Tensor:
    m, d = Z.shape
    entries = np.zeros((K, m, m))
    for i, k in enumerate(labels.numpy()):
        entries[k, i, i] = 1
    membership = torch.tensor(entries, dtype=torch.float32)
    eye = torch.eye(d)
    reduction = torch.logdet(eye + d / (m * EPS_SQ) * Z.T @ Z) / 2
    for Pi in membership:
        mass = torch.trace(Pi) + 1e-8
        class_rate = torch.logdet(eye + d / (mass * EPS_SQ) * Z.T @ Pi @ Z) / 2
        reduction = reduction - mass / m * class_rate
    return reduction


def _bare(Z: Tensor, labels: Tensor, K: int) -> Callable[[], object]:
    """Products alone, on samples that lie sorted already; K must divide m to make one block."""
    m, d = Z.shape
    n = m // K
    X = Z[labels.argsort(stable=True)]
    classes, last = X[: n * K].view(K, n, d), X[n * (K - 1) :]
    extra = last[n:]  # what an uneven division leaves over, with a product of its own
    total = Z.T @ Z
    by_class = classes @ classes.mT if n < d else classes.mT @ classes

    def products() -> object:
        results = [Z.T @ Z, Z @ total]
        if n < d:
            results += [classes @ classes.mT, by_class @ classes]
        else:
            results += [classes.mT @ classes, classes @ by_class]
        if len(extra):
            results += [extra @ extra.T @ extra]
        return results

    return products


def _signal_loop(Z: Tensor, labels: Tensor, K: int) -> Tensor:
    m, C = Z.shape[:2]
    spectrum = torch.fft.fftn(Z, dim=tuple(range(2, Z.dim()))).flatten(2)
    T = spectrum.shape[2]
    eye = torch.eye(C, dtype=spectrum.dtype)
    members = [(labels == k).nonzero()[:, 0] for k in range(K)]
    reduction = torch.zeros((), dtype=Z.dtype)
    for f in range(T):
        V = spectrum[:, :, f]
        reduction = reduction + torch.linalg.slogdet(eye + C / (m * EPS_SQ) * V.mH @ V)[1]
        for rows in members:
            X, n = V[rows], len(rows)
            if n:
                logdet = torch.linalg.slogdet(eye + C / (n * EPS_SQ) * X.mH @ X)[1]
                reduction = reduction - n / m * logdet
    return reduction / (2 * T)


def _bare_signals(Z: Tensor, labels: Tensor, K: int) -> Callable[[], object]:
    m, C = Z.shape[:2]
    n = m // K
    half = torch.fft.rfftn(Z, dim=tuple(range(2, Z.dim()))).flatten(2).permute(2, 0, 1)
    V = half[:, labels.argsort(stable=True)][:, : n * K].contiguous()
    classes = V.unflatten(1, (K, n))
    total = V.mH @ V
    by_class = classes @ classes.mH if n < C else classes.mH @ classes

    def products() -> object:
        results = [V.mH @ V, V @ total]
        if n < C:
            return [*results, classes @ classes.mH, by_class @ classes]
        return [*results, classes.mH @ classes, classes @ by_class]

    return products


# --- instruments --------------------------------------------------------------------------------


def _features(m: int, d: int, generator: torch.Generator) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(m, d, generator=generator))


def _shuffled(labels: Tensor, generator: torch.Generator) -> Tensor:
    return labels[torch.randperm(len(labels), generator=generator)]


def _both_ways(form: Callable[[Tensor], Tensor], Z: Tensor) -> Callable[[], object]:
    return lambda: _value_and_gradient(form, Z)[1]


def _value_and_gradient(form: Callable[[Tensor], Tensor], Z: Tensor) -> tuple[Tensor, Tensor]:
    X = Z.detach().requires_grad_()
    value = form(X)
    return value.detach(), torch.autograd.grad(value, X)[0]


def _agreement(Z: Tensor, labels: Tensor, K: int) -> dict[str, float]:
    """Compare R, R_k, R_c, ΔR and the gradient of ΔR with the oracle's."""
    X = Z.detach().requires_grad_()
    rates = rate_reduction(X, labels, num_classes=K, eps_sq=EPS_SQ)
    exact_X = Z.detach().double().requires_grad_()
    exact = _oracle(exact_X, labels, K)
    differences = {
        name: _difference(value, other)
        for name, value, other in zip(Rates._fields, rates, exact, strict=True)
    }
    gradients = (torch.autograd.grad(r.reduction, x)[0] for r, x in ((rates, X), (exact, exact_X)))
    differences["gradient"] = _difference(*gradients)
    alone = coding_rate(Z, eps_sq=EPS_SQ)
    class_rates = class_coding_rates(Z, labels, num_classes=K, eps_sq=EPS_SQ)
    differences["coding_rate"] = _difference(alone, exact.rate)
    differences["class_coding_rates"] = _difference(class_rates, exact.class_rates)
    return differences


def _oracle(Z: Tensor, labels: Tensor, K: int) -> Rates:
    """Every determinant by itself, by LU, on the smaller side."""
    d = Z.shape[1]

    def rate(X: Tensor) -> Tensor:
        n = len(X)
        gram = X @ X.T if n < d else X.T @ X
        eye = torch.eye(len(gram), dtype=X.dtype)
        return torch.linalg.slogdet(eye + d / (max(n, 1) * EPS_SQ) * gram)[1] / 2

    members = [(labels == k).nonzero()[:, 0] for k in range(K)]
    class_rates = torch.stack([rate(Z.index_select(0, rows)) for rows in members])
    shares = torch.tensor([len(rows) / len(Z) for rows in members], dtype=Z.dtype)
    compressed_rate = class_rates @ shares
    return Rates(rate(Z), class_rates, compressed_rate, rate(Z) - compressed_rate)


def _differences(found: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor]) -> dict[str, float]:
    names = ("reduction", "gradient")
    return {n: _difference(a, b) for n, a, b in zip(names, found, exact, strict=True)}


def _difference(value: Tensor, exact: Tensor) -> float:
    return float((value.detach().double() - exact.detach()).norm() / exact.detach().norm())


def _seconds(call: Callable[[], object], calls: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return time.perf_counter() - start


def _peak_mb(call: Callable[[], object]) -> float | None:
    """Extra resident memory at the worst moment, in 2**20 bytes, or None off Linux."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # where glibc is
        ctypes.CDLL(None).malloc_trim(0)  # or what earlier calls gave back is taken again unseen
    before = restart_peak()
    call()
    peak = peak_mib()
    return None if before is None or peak is None else peak - before


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = (line.split(":", 1)[1].strip() for line in file if "model name" in line)
            return next(names, platform.machine())
    except OSError:
        return platform.processor() or platform.machine()
