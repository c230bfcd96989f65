# %% [markdown]
# # Your own loss
#
# A loss is a class with a method. It lives in a file, so that a run can name it, hash it and be
# repeated:

# %%
from pathlib import Path

LOSS = '''
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
'''
Path("my_loss.py").write_text(LOSS)

# %% [markdown]
# `embed` makes what the loss scores and the evaluator measures of the network's raw features;
# `loss` returns the scalar to minimise and named scalars for the log. It never sees images or the
# network. Tried by itself, with no data:

# %%
import torch
from my_loss import MyLoss

loss = MyLoss(num_classes=10)
loss(torch.randn(200, 64), torch.arange(200) % 10)

# %% [markdown]
# ## Beside the others
#
# It gets the same network, initial weights, corrupted labels, sampling and evaluator as
# cross-entropy and MCR². One seed at one ratio and 20 epochs, for a first look; `epochs` left
# out, each takes the recipe's 60.

# %%
from experiments.studies.label_noise import LabelNoise

study = LabelNoise(
    methods=("ce", "mcr2", "my_loss.py:MyLoss"),
    ratios=(0.3,),
    seeds=(0,),
    epochs=20,
    out=Path("results/own"),
)
run = study.prepare()
status = run()

# %% [markdown]
# ## Its terms, along training
#
# What `loss` returned by name is in the record of each run.

# %%
import pandas as pd

from mcr2.records import load_run

(folder,) = Path("results/own/runs").glob("*MyLoss*")
record = load_run(folder).record
pd.DataFrame({entry["epoch"]: entry["terms"] for entry in record.history[1:]}).T.round(2)

# %% [markdown]
# Editing the file makes its runs, and only its, run anew. As a command, and for as many runs as
# wanted:
#
#     mcr2 table --methods ce mcr2 docs/my_loss.py:MyLoss
#
# Where to go on: [all that a loss may define](../extending.md#a-loss), how it is debugged, and a
# backbone or a study of your own.
