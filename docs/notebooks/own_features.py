# %% [markdown]
# # Your own features
#
# Rank, collapse and rates can be measured of any features: a tensor or an array `(N, d)` with
# integer labels `(N,)`, from any network, any library. Here they are those of scikit-learn's
# digits: the pixels themselves, and the hidden layer of scikit-learn's small network after one
# pass over the data and after two hundred.

# %%
import warnings

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

import mcr2

digits = load_digits()
x_train, x_test, y_train, y_test = train_test_split(
    digits.data / 16, digits.target, test_size=0.2, random_state=0
)


def hidden_layer(epochs):
    """Train scikit-learn's network and return what its hidden layer makes of images."""
    network = MLPClassifier((64,), alpha=1e-2, max_iter=epochs, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one epoch is not enough is the point
        network.fit(x_train, y_train)
    return lambda x: np.maximum(x @ network.coefs_[0] + network.intercepts_[0], 0)


features = {"pixels": lambda x: x, "epoch 1": hidden_layer(1), "epoch 200": hidden_layer(200)}

# %% [markdown]
# ## One measure at a time
#
# Each is a plain function. `participation_ratio` says over how many dimensions features spread,
# `nc1` how tight classes are beside the distance of their means (0 is
# [collapse](../collapse.md)), ΔR by how many nats labels shorten the features' code
# ([rates](../mcr2.md); of unit-norm features, so that sets compare).

# %%
rows = {}
for name, encode in features.items():
    H = encode(x_train)
    rank = mcr2.feature_rank(H)
    collapse = mcr2.neural_collapse(H, y_train, num_classes=10)
    rates = mcr2.metrics.coding.coding_measures(H, y_train, num_classes=10)
    rows[name] = {
        "participation_ratio": rank.participation_ratio,
        "dim95": rank.dim95,
        "nc1": collapse.nc1,
        "nc2_etf": collapse.nc2_etf,
        "ΔR": rates.reduction,
    }
pd.DataFrame(rows).T.round(2)

# %% [markdown]
# Training gathers features in fewer dimensions and tightens classes (`nc1`), but not to points on a
# simplex (`nc2_etf` stays): this network is far from collapse. ΔR is not about accuracy alone; the
# pixels' is largest because they use the most dimensions.
#
# ## Everything at once
#
# `evaluate_features` takes all measures of the [catalogue](../evaluation.md#measures), on
# training and test samples, and fits readouts on the training features. With `clean_labels` in
# the third place of `Labelled` it also measures what became of wrong labels.

# %%
from mcr2.evaluation import Labelled

evaluations = {
    name: mcr2.evaluate_features(
        Labelled(encode(x_train), y_train),
        Labelled(encode(x_test), y_test),
        num_classes=10,
        readouts=("class_mean", "nearest_subspace@3", "knn@5"),
    )
    for name, encode in features.items()
}
keys = [
    f"features/test/clean/{readout}/accuracy"
    for readout in ("ridge", "class_mean", "nearest_subspace@3", "knn@5")
] + ["features/test/clean/-/cdnv"]
pd.DataFrame({name: each.measures for name, each in evaluations.items()}).loc[keys].round(3)

# %% [markdown]
# ## More features than memory holds
#
# Moments of classes are added up batch by batch; collapse and rates are read from them.

# %%
from mcr2.metrics.collapse import collapse_of_moments
from mcr2.metrics.moments import ClassMoments

encode = features["epoch 200"]
moments = ClassMoments(num_classes=10, dim=64)
for start in range(0, len(x_train), 256):
    moments.update(encode(x_train[start : start + 256]), y_train[start : start + 256])
collapse_of_moments(moments).nc1

# %% [markdown]
# From the command line, features in a file: `mcr2 measure features.npz` (see
# [evaluation](../evaluation.md)).
