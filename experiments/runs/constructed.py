"""Methods that are constructed: ReduNet's layers from the labels, evaluated along their depth.

Depth stands where epochs stand: history and selection go over layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from experiments.runs import redunet
from experiments.runs.method import Workspace, readout_for, watch_for
from experiments.runs.prepare import Prepared, Sizes
from experiments.runs.specs import RunSpec
from mcr2.redunet import LayerRates
from mcr2.training import History, Interrupted, TrainingResult


@dataclass(frozen=True)
class Constructed:
    """The method ``redunet``; see :data:`experiments.runs.methods.Method`."""

    name: str
    readout: str = "nearest_subspace"
    options: frozenset[str] = redunet.OPTIONS
    additive: bool = False
    trained: bool = False
    fingerprint: str = ""

    def check(self, spec: RunSpec, sizes: Sizes) -> None:
        """Refuse a spec that cannot be constructed, before anything is spent."""
        redunet.check(spec, sizes.in_channels, sizes.height, sizes.width)
        if readout_for(spec, self) == "head":
            raise ValueError(f"readout is 'head', but {self.name} has no classifier of its own")
        if spec.measured_layers:
            raise ValueError(f"measured_layers: {self.name} is measured after its layers as it is")

    def load(
        self, spec: RunSpec, sizes: Sizes, state: Mapping[str, Tensor]
    ) -> redunet.ReduNetEncoder:
        """Return the encoder whose tensors were kept."""
        encoder = redunet.make_encoder(spec, sizes.in_channels)
        encoder.load_state_dict(dict(state))
        return encoder

    def fit(self, spec: RunSpec, data: Prepared, workspace: Workspace) -> TrainingResult:
        """Construct the spec's network, keeping it at the depths that its rules select."""
        encoder = redunet.make_encoder(spec, data.sizes.in_channels)
        encoder.to(workspace.device)
        history = History(
            encoder,
            watch_for(spec, readout_for(spec, self), data, workspace),
            epochs=redunet.read_options(spec).layers,
            evaluate_every=spec.training.evaluate_every,
            device=workspace.device,
            copy=False,
        )

        def record(rates: LayerRates) -> None:
            depth, loss = rates.layers, -rates.reduction
            terms = {name: value for name, value in rates._asdict().items() if name != "layers"}
            history.result.steps = depth
            if history.due(depth):
                history.evaluate_and_record(depth, lr=None, loss=loss, terms=terms)
            history.tell_progress(depth, loss, terms)
            if workspace.stop is not None and workspace.stop():
                raise Interrupted  # layers have no checkpoint: the next time begins again

        redunet.construct(
            encoder,
            data.train.to(workspace.device),
            spec,
            num_classes=data.sizes.num_classes,
            progress=record,
        )
        return history.finish()
