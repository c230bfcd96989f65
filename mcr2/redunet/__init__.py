"""ReduNet: a network that is constructed, layer by layer, from the gradient of the coding rates.

No back-propagation and no step size schedule: layer ℓ is read off the features that the layers
before it make of the training samples. With samples as rows,

    E   = α (I + α ZᵀZ)⁻¹,            α   = d/(m ε²)
    C_k = α_k (I + α_k ZᵀΠ_kZ)⁻¹,     α_k = d/(tr Π_k ε²),     γ_k = tr Π_k / m

are the derivatives of R and of the class rates, and a layer takes a step of length η along the
gradient of ΔR, the membership of each sample being estimated,

    z ← P(z + η (E z − Σ_k γ_k π̂_k(z) C_k z)),     π̂_k(z) ∝ exp(−λ ‖C_k z‖),

P the projection to the unit sphere. Vectors ``(m, d)``, signals ``(m, C, T)`` and images
``(m, C, H, W)``; the operators of signals and images are circular convolutions, so that a shift of
the input shifts the output.

    network.py      ReduNet: fit, forward, rates by layer
    layers.py       one layer, and its operators from Gram matrices or from samples
    features.py     the training samples between layers: in memory, on disk, or recomputed
    spectra.py      signals and their half spectra, in which layers work
    lifting.py      RandomFilters: more channels by circular convolution and ReLU

Reference: Chan, Yu, You, Qi, Wright & Ma, "ReduNet: A White-box Deep Network from the Principle of
Maximizing Rate Reduction", JMLR 2022, Sections 3 and 4. The paper writes samples as columns.
"""

from mcr2.redunet.features import STORES
from mcr2.redunet.layers import LayerRates
from mcr2.redunet.lifting import RandomFilters
from mcr2.redunet.network import MEMBERSHIPS, ReduNet

__all__ = ["MEMBERSHIPS", "STORES", "LayerRates", "RandomFilters", "ReduNet"]
