# %% [markdown]
# # Your own loss
#
# A loss is a class with a method. `embed` makes what the loss scores and the evaluator measures of
# the network's raw features; `loss` returns the scalar to minimise, and named scalars for the log.
# It never sees images or the network.

# %%
from torch.nn.functional import normalize

from mcr2.objectives import Objective
from mcr2.rates import rate_reduction


class MyLoss(Objective):
    """Rate reduction in which every class weighs the same, however few samples it has."""

    def embed(self, raw):
        return normalize(raw, dim=1)

    def loss(self, features, labels, context):
        rates = rate_reduction(features, labels, num_classes=self.num_classes)
        compressed = rates.class_rates.mean()
        return compressed - rates.rate, {"rate": rates.rate, "compressed_rate": compressed}


# %% [markdown]
# Tried by itself, with no data:

# %%
import torch

MyLoss(num_classes=10)(torch.randn(200, 64), torch.arange(200) % 10)

# %% [markdown]
# ## Beside the others
#
# Trained on digits of which 30 % of the labels were redrawn. It gets the same network, initial
# weights, corrupted labels, sampling and evaluator as cross-entropy and MCR². 20 epochs are a first
# look; left out, each takes the recipe's 60. A run that is there already is opened, not trained.

# %%
import experiments

runs = {
    name: experiments.run(method, "digits", ratio=0.3, epochs=20, progress=False)
    for name, method in {"ce": "ce", "mcr2": "mcr2", "mine": MyLoss}.items()
}

# %% [markdown]
# Test accuracy at the last epoch and stopped early, by the readout that each is reported by and by
# ridge, which is fitted alike for all:

# %%
import pandas as pd

pd.DataFrame(
    {
        name: {
            (rule, readout or "own"): run.accuracy(rule, readout=readout)
            for rule in ("last", "noisy_validation")
            for readout in (None, "ridge")
        }
        for name, run in runs.items()
    }
).T.round(3)

# %% [markdown]
# ## Along training
#
# What becomes of wrong labels: the share that each network reproduces.

# %%
import matplotlib.pyplot as plt

figure, panel = plt.subplots(figsize=(6, 3), layout="constrained")
for name, run in runs.items():
    fitted = run.history.query("measure == 'fit_corrupted' and readout == 'ridge'")
    panel.plot(fitted.epoch, fitted.value, ".-", label=name)
panel.set(xlabel="epoch", ylabel="wrong labels reproduced", ylim=(0, 1.02))
panel.legend(frameon=False)
panel.grid(alpha=0.25)

# %% [markdown]
# What `loss` returned by name is in the run's record.

# %%
terms = {each["epoch"]: each["terms"] for each in runs["mine"].record.history[1:]}
pd.DataFrame(terms).T.round(2)

# %% [markdown]
# Edit the class and run its cell again: its runs, and only its, are trained anew. For a whole table
# with intervals it has to lie in a file:
#
#     mcr2 table --methods ce mcr2 docs/my_loss.py:MyLoss
#
# Where to go on: [all that a loss may define](../extending.md#a-loss), how it is debugged, and a
# backbone or a study of your own.
