"""One ReduNet, looked at: rates by layer, accuracy, memory, figures.

    mcr2 redunet --dataset digits --out results/redunet-digits

The network is that of the label-noise study's method ``redunet`` on the same samples with the same
noisy labels. Ten seconds on one core for digits; 50 layers on 10,000 images of Fashion-MNIST take
some minutes:

    mcr2 redunet --dataset fashion_mnist --subset 10000 --set layers=50 validation=0

Left behind are ``rates.json``, the network's ``weights.safetensors`` with its options in their
metadata, and figures of R, R_c and ΔR by layer, and, before the first layer and after the last, of
|cosine| between samples sorted by class and of the singular values of each class.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from experiments.runs.options import DataOptions
from experiments.runs.terminal import say, warn
from experiments.studies.engine import Study, claim_folder, dataset_name, one_spec

if TYPE_CHECKING:
    import torch

    from experiments.runs.prepare import Prepared
    from experiments.runs.redunet import ReduNetEncoder
    from experiments.runs.specs import RunSpec
    from mcr2.data import Split
    from mcr2.redunet import LayerRates

#: Samples of each class in the matrices of cosines.
SHOWN = 30


def build(
    encoder: ReduNetEncoder, spec: RunSpec, data: Prepared, device: torch.device
) -> dict[str, Any]:
    """Construct a spec's network, printing the rates of every layer as it comes, and what it took.

    ``extra_mib`` is by how much construction raised the peak of memory above what was held before
    it, less the network's own ``model_mib``: of tensors on CUDA, on the CPU of all that is
    resident, at least 0 (layers may come to lie where something was freed before); None elsewhere.
    """
    from experiments.runs.memory import peak_memory, restart_peak_memory
    from experiments.runs.redunet import construct

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
    extra = None if before is None or peak is None else max(0.0, (peak - before) / 2**20 - own)
    d = int(encoder.network.shape.prod())
    beyond = "not known" if extra is None else f"{extra:.0f} MiB"
    print(
        f"\n{len(train)} samples of {d} numbers at the first layer; {seconds:.1f} s; network "
        f"{own:.0f} MiB; peak memory beyond it {beyond}\n",
        flush=True,
    )
    return {"seconds": seconds, "model_mib": own, "extra_mib": extra}


def few_of_each(split: Split, num_classes: int, count: int = SHOWN) -> Split:
    """Return the first samples of each class by the labels constructed from, sorted by class."""
    import torch

    members = [(split.labels == k).nonzero()[:count, 0] for k in range(num_classes)]
    return split.select(torch.cat(members))


def draw(out: Path, encoder: ReduNetEncoder, data: Prepared) -> None:
    """Draw the three figures into a folder."""
    import torch

    from experiments.report import canvas
    from mcr2.data import to_float

    network, classes, name = encoder.network, data.dataset.classes, data.dataset.name
    few = few_of_each(data.train, data.sizes.num_classes)
    rates, axes = canvas.panels(1, 1, 6, 3.5)
    canvas.rates(axes[0, 0], network.history)
    axes[0, 0].set(xlabel="layers passed", title=f"Rates by layer, {name}")
    cosines, left = canvas.panels(1, 2, 5, 4.2)
    spectra, right = canvas.panels(1, 2, 5, 3.5, sharey=True)
    depth = len(network.layers)
    whens = ((0, "before the first layer"), (depth, f"after layer {depth}"))
    for number, (layers, when) in enumerate(whens):
        with torch.no_grad():
            X = encoder.enter(to_float(few.images).to(network.shape.device))
            Z = network(X, layers=layers).flatten(1).cpu().double()
        image = canvas.cosines(
            left[0, number], (Z @ Z.T).abs().numpy(), few.labels.tolist(), classes
        )
        values = {
            c: torch.linalg.svdvals(Z[few.labels == k]).tolist() for k, c in enumerate(classes)
        }
        canvas.spectra(right[0, number], values)
        for panel in (left[0, number], right[0, number]):
            panel.set_title(when)
            panel.label_outer()
    cosines.colorbar(image, ax=left, label="|cosine|")
    cosines.suptitle(f"Training samples of {name} by the label constructed from")
    spectra.suptitle(f"Singular values of classes of {name}, at most {SHOWN} samples of each")
    for file, figure in (("rates", rates), ("cosines", cosines), ("spectra", spectra)):
        canvas.save(figure, out / f"{file}.png")


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
        from experiments.runs.prepare import prepared
        from experiments.runs.redunet import make_encoder
        from experiments.runs.specs import as_dict
        from mcr2.records import content_key

        machine = Machine(self.device, self.threads, self.data_root)
        spec = one_spec(self, "redunet", self.ratio, self.seed)
        out = self.out or Path("results") / f"redunet-{dataset_name(spec.dataset)}"
        data = prepared(spec, machine.data_root)
        METHODS["redunet"].check(spec, data.sizes)
        encoder = make_encoder(spec, data.sizes.in_channels, self.patience)
        settings = content_key(as_dict(spec), self.patience, data.dataset.content_hash())
        identity = {"study": self.name, "dataset": data.dataset.name, "ratio": self.ratio}
        claim_folder(out, identity | {"seed": self.seed, "settings and data": settings[:12]})

        def go() -> int:
            device = machine.configure_torch()
            try:
                took = build(encoder, spec, data, device)
            except ValueError as error:  # an ε² too small for the samples
                warn(error)
                return 1
            leave(out, encoder, spec, data, took)
            return 0

        return go


def leave(
    out: Path, encoder: ReduNetEncoder, spec: RunSpec, data: Prepared, took: Mapping[str, Any]
) -> None:
    """Print what was constructed, and leave figures, rates and weights in a folder."""
    import torch

    from experiments.report.evaluation import evaluation_tables
    from experiments.runs.method import evaluator_along, readout_for
    from experiments.runs.methods import METHODS
    from experiments.runs.redunet import read_options
    from experiments.runs.specs import as_dict
    from mcr2.records import environment, save_tensors, write_json

    network = encoder.network
    readout = readout_for(spec, METHODS["redunet"])
    found = evaluator_along(spec, data, readout, network.shape.device)(encoder)
    print(evaluation_tables(found.measures)[0].text())
    content = {
        "spec": as_dict(spec),
        "rates": [rates._asdict() for rates in network.history],
        "layers": len(network.layers),
        **took,
        "measures": dict(found.measures),
        "environment": {**environment(), "threads": torch.get_num_threads()},
    }
    write_json(out / "rates.json", content)
    # Not all that features depend on is among the tensors.
    options = {"options": asdict(read_options(spec))}
    save_tensors(out / "weights.safetensors", dict(encoder.state_dict()), options)
    draw(out, encoder, data)
    print()
    say(f"{out}: rates.json, weights.safetensors, rates.png, cosines.png, spectra.png")
