"""One ReduNet, looked at: rates by layer, accuracy, memory, figures.

    mcr2 redunet --dataset digits --out results/redunet-digits

The network is that of the label-noise study's method ``redunet`` on the same samples with the same
noisy labels. Ten seconds on one core for digits; 50 layers on 10,000 images of Fashion-MNIST take
some minutes:

    mcr2 redunet --dataset fashion_mnist --subset 10000 --set layers=50 validation=0

Left behind are ``rates.json``, the network's ``weights.safetensors`` with the options that it was
constructed by in their metadata, and three figures:
``rates.png`` (R, R_c and ΔR by layer), ``cosines.png`` (|cosine| between samples sorted by class,
before the first layer and after the last) and ``spectra.png`` (singular values of each class,
before and after).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from experiments.runs.options import DataOptions
from experiments.studies.engine import Study, claim_folder, dataset_name, one_spec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from experiments.runs.prepare import Prepared
    from experiments.runs.redunet import ReduNetEncoder
    from experiments.runs.specs import RunSpec
    from mcr2.data import Split
    from mcr2.redunet import LayerRates

#: Samples of each class in the matrices of cosines.
SHOWN = 30

#: What became of the training labels.
LEARNT = ("fit_noisy", "fit_corrupted", "recovered")


@dataclass(frozen=True)
class Made:
    """A constructed network, and how it came about.

    Attributes:
        encoder: images -> features.
        history: rates before the first layer and after each.
        seconds: construction alone.
        model_mib: the network's own size.
        extra_mib: by how much construction raised the peak of memory above what was held before
            it, less the network's own size: of tensors on CUDA, on the CPU of all that is resident,
            at least 0 (layers may come to lie where something was freed before). None elsewhere,
            and on the CPU off Linux.
        measures: as of an evaluation during training.
    """

    encoder: ReduNetEncoder
    history: tuple[LayerRates, ...]
    seconds: float
    model_mib: float
    extra_mib: float | None
    measures: dict[str, Any]


def build(
    spec: RunSpec, data: Prepared, device: torch.device, *, patience: int | None = None
) -> Made:
    """Construct a spec's network, printing the rates of every layer as it comes, and what it took.

    Args:
        spec: of the method ``redunet``.
        data: prepared by the spec.
        device: where.
        patience: of :class:`mcr2.redunet.ReduNet`.
    """
    from experiments.runs.memory import peak_memory, restart_peak_memory
    from experiments.runs.method import evaluator_along, readout_for
    from experiments.runs.methods import METHODS
    from experiments.runs.redunet import construct, make_encoder

    encoder = make_encoder(spec, data.sizes.in_channels, patience)
    encoder.to(device)
    train = data.train.to(device)
    print(f"{'layer':>5}  {'R':>9}  {'R_c':>9}  {'ΔR':>9}")

    def tell(rates: LayerRates) -> None:
        shown = (rates.rate, rates.compressed_rate, rates.reduction)
        print(f"{rates.layers:5d}  " + "  ".join(f"{value:9.4f}" for value in shown), flush=True)

    before, start = restart_peak_memory(device), time.perf_counter()
    construct(encoder, train, spec, num_classes=data.sizes.num_classes, progress=tell)
    seconds, peak = time.perf_counter() - start, peak_memory(device)
    own = sum(t.numel() * t.element_size() for t in encoder.state_dict().values()) / 2**20
    extra = None
    if before is not None and peak is not None:
        extra = max(0.0, (peak - before) / 2**20 - own)
    d = int(encoder.network.shape.prod())
    beyond = "not known" if extra is None else f"{extra:.0f} MiB"
    print(
        f"\n{len(train)} samples of {d} numbers at the first layer; {seconds:.1f} s; network "
        f"{own:.0f} MiB; peak memory beyond it {beyond}",
        flush=True,
    )
    measures = evaluator_along(spec, data, readout_for(spec, METHODS["redunet"]), device)(
        encoder
    ).measures
    return Made(encoder, encoder.network.history, seconds, own, extra, dict(measures))


def summary(spec: RunSpec, data: Prepared, made: Made) -> str:
    """Return accuracies and memorization by both readouts, as text."""
    from experiments.report.table import Table
    from experiments.runs.method import readout_for
    from experiments.runs.methods import METHODS
    from mcr2.evaluation import COMMON_READOUT, measure_key

    rows = []
    for readout in dict.fromkeys((readout_for(spec, METHODS["redunet"]), COMMON_READOUT)):

        def shown(measure: str, split: str, labels: str, readout: str = readout) -> str:
            key = measure_key(measure, split=split, labels=labels, readout=readout)
            value = made.measures.get(key)
            return "-" if value is None else f"{value:.3f}"

        rows.append(
            (
                "redunet",
                readout,
                str(len(made.encoder.network.layers)),
                shown("accuracy", "test", "clean"),
                shown("accuracy", "validation", "noisy"),
                *(shown(m, "train", "noisy") for m in LEARNT),
            )
        )
    header = ("method", "readout", "layers", "test", "validation", *LEARNT)
    title = f"{data.dataset.name} at ratio {spec.ratio:g}, seed {spec.seed}"
    return f"\n{Table(title, header, tuple(rows)).text()}\n"


def few_of_each(split: Split, num_classes: int, count: int = SHOWN) -> Split:
    """Return the first samples of each class by the labels constructed from, sorted by class."""
    import torch

    members = [(split.labels == k).nonzero()[:count, 0] for k in range(num_classes)]
    return split.select(torch.cat(members))


def draw(out: Path, made: Made, data: Prepared) -> list[Path]:
    """Draw the three figures into a folder and return their paths."""
    import torch

    from experiments.report.canvas import COLOURS, pyplot, save

    plt = pyplot()
    few = few_of_each(data.train, data.sizes.num_classes)
    network = made.encoder.network
    device = network.shape.device
    ends = ("before the first layer", f"after layer {len(network.layers)}")

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for (name, label), colour in zip(
        (("rate", "R"), ("compressed_rate", "R_c"), ("reduction", "ΔR")), COLOURS, strict=False
    ):
        values = [getattr(rates, name) for rates in made.history]
        axes.plot([rates.layers for rates in made.history], values, color=colour)
        axes.annotate(
            label,
            (made.history[-1].layers, values[-1]),
            xytext=(4, 0),
            textcoords="offset points",
            color=colour,
            va="center",
        )
    axes.set(xlabel="layers passed", ylabel="rate of the training features (nats)")
    axes.set_title(f"Rates by layer, {data.dataset.name}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.08)

    both = [_directions(made, few.to(device), layers) for layers in (0, None)]
    matrices, pair = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
    sizes = torch.bincount(few.labels, minlength=data.sizes.num_classes)
    middles = (sizes.cumsum(0) - sizes / 2).tolist()
    for panel, Z, when in zip(pair, both, ends, strict=True):
        image = panel.imshow(
            (Z @ Z.T).abs().numpy(), cmap="Greys", vmin=0, vmax=1, interpolation="none"
        )
        panel.set_title(when)
        panel.set_xticks(middles, data.dataset.classes, fontsize=8, rotation=90)
        panel.set_yticks(middles, data.dataset.classes, fontsize=8)
        panel.tick_params(length=0)
    matrices.colorbar(image, ax=list(pair), label="|cosine|")
    matrices.suptitle(f"Training samples of {data.dataset.name} by the label constructed from")

    spectra, pair = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    for panel, Z, when in zip(pair, both, ends, strict=True):
        for k in range(data.sizes.num_classes):
            values = torch.linalg.svdvals(Z[few.labels == k]).tolist()
            colour = plt.get_cmap("viridis")(k / max(data.sizes.num_classes - 1, 1) * 0.9)
            panel.plot(range(1, len(values) + 1), values, color=colour, linewidth=1.2)
            if len(values):
                panel.plot([], [], color=colour, label=data.dataset.classes[k])
        panel.set(xlabel="index", title=when)
        panel.spines[["top", "right"]].set_visible(False)
    pair[0].set_ylabel(f"singular value of a class (at most {SHOWN} samples)")
    pair[1].legend(fontsize=8, frameon=False, title="class")

    paths = []
    for name, drawn in (("rates", figure), ("cosines", matrices), ("spectra", spectra)):
        paths.append(out / f"{name}.png")
        save(drawn, paths[-1])
    return paths


def _directions(made: Made, split: Split, layers: int | None) -> Tensor:
    """Return flat features of unit norm after the first ``layers``, on the CPU."""
    import torch

    from mcr2.data import to_float

    with torch.no_grad():
        X = made.encoder.enter(to_float(split.images))
        features: Tensor = made.encoder.network(X, layers=layers)
        return features.flatten(1).cpu().double()


@dataclass(frozen=True)
class Construction(DataOptions, Study):
    """Construct a ReduNet, print the rates of its layers, and leave figures.

    Of a run's fields --set knows layers, eta, eps_sq, lam, lifting (channels), kernel_size,
    membership, store; validation, batch_size, readout, n_components and streams.NAME.
    """

    ratio: float = 0.0
    """Share of the training labels to redraw."""
    seed: int = 0
    """From which every stream of randomness is seeded."""
    out: Path | None = None
    """Folder for figures, rates and weights; results/redunet-DATASET by default."""
    patience: int | None = None
    """Stop where ΔR has not grown for so many layers, and go back to the best."""

    name: ClassVar[str] = "construction"

    def prepare(self) -> Callable[[], int]:
        """Load and prepare the data, check the spec and take the folder."""
        from experiments.runs.machine import Machine
        from experiments.runs.methods import METHODS
        from experiments.runs.prepare import load, prepare
        from experiments.runs.redunet import make_encoder

        machine = Machine(self.device, self.threads, self.data_root)
        spec = one_spec(self, "redunet", self.ratio, self.seed)
        out = self.out or Path("results") / f"redunet-{dataset_name(spec.dataset)}"
        data = prepare(spec, load(spec, machine.data_root))
        METHODS["redunet"].check(spec, data.sizes)
        make_encoder(spec, data.sizes.in_channels, self.patience)
        claim_folder(out, {"study": self.name, "dataset": data.dataset.name, "ratio": self.ratio})

        def go() -> int:
            device = machine.configure_torch()
            try:
                made = build(spec, data, device, patience=self.patience)
            except ValueError as error:  # an ε² too small for the samples
                print(f"mcr2: {error}", file=sys.stderr)
                return 1
            leave(out, made, spec, data)
            return 0

        return go


def leave(out: Path, made: Made, spec: RunSpec, data: Prepared) -> None:
    """Print what was constructed, and leave figures, rates and weights in a folder."""
    import torch

    from experiments.runs.redunet import read_options
    from experiments.runs.specs import as_dict
    from mcr2.records import environment, save_tensors, write_json

    print(summary(spec, data, made))
    write_json(
        out / "rates.json",
        {
            "spec": as_dict(spec),
            "rates": [rates._asdict() for rates in made.history],
            "layers": len(made.encoder.network.layers),
            "seconds": made.seconds,
            "model_mib": made.model_mib,
            "extra_mib": made.extra_mib,
            "measures": made.measures,
            "environment": {**environment(), "threads": torch.get_num_threads()},
        },
    )
    # Not all that features depend on is among the tensors.
    options = {"options": asdict(read_options(spec))}
    save_tensors(out / "weights.safetensors", dict(made.encoder.state_dict()), options)
    names = [path.name for path in draw(out, made, data)]
    print(f"{out}: rates.json, weights.safetensors, {', '.join(names)}")
