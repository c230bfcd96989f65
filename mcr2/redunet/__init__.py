"""ReduNet: a network that is constructed, layer by layer, from the gradient of the coding rates.

No back-propagation and no step size schedule: layer ℓ is computed from the features that the layers
before it make of the training samples; the formulas are in :class:`ReduNet`. Vectors ``(m, d)``,
signals ``(m, C, T)`` and images ``(m, C, H, W)``; the operators of signals and images are circular
convolutions, so that a shift of the input shifts the output.

    network.py      ReduNet: fit, forward, rates by layer
    layers.py       one layer, and its operators from Gram matrices or from samples
    features.py     the training samples between layers: in memory, or on disk
    spectra.py      signals and their half spectra, in which layers work
    lifting.py      RandomFilters: more channels by circular convolution and ReLU
"""

from mcr2.redunet.features import STORES
from mcr2.redunet.layers import LayerRates
from mcr2.redunet.lifting import RandomFilters
from mcr2.redunet.network import ReduNet

__all__ = ["STORES", "LayerRates", "RandomFilters", "ReduNet"]
