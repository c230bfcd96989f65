# %% [markdown]
# # Reproduce the table
#
# The label-noise table trains cross-entropy and MCR² on labels of which a share was redrawn, and
# measures both alike. All of it, three seeds at six ratios, is a command of some minutes:
#
#     make table          # or, installed: mcr2 table
#
# Here a smaller one is run from Python, one seed at three ratios, and read into pandas.

# %%
from pathlib import Path

from experiments.studies.label_noise import LabelNoise

study = LabelNoise(ratios=(0, 0.3, 0.5), seeds=(0,), out=Path("results/notebook"))
run = study.prepare()
status = run()

# %% [markdown]
# The same cell continues a study that was interrupted; further ratios, seeds or methods extend
# it. Each option of `mcr2 table` is a field of `LabelNoise`. What the tables mean is on [the
# table's page](../table.md#the-tables); `report.html` in the folder has all of them.
#
# ## In pandas
#
# `load_study` reads any study's folder, also one that was made elsewhere: `runs` has a row a run,
# `history` what was measured along training, `evaluations` what was measured at the epochs that
# the selection rules chose.

# %%
import mcr2

frames = mcr2.load_study("results/notebook")
accuracy = frames.evaluations.query(
    "measure == 'accuracy' and split == 'test' and readout == 'ridge' and layer == 'features'"
).merge(frames.runs[["run", "method", "ratio", "seed"]], on="run")
accuracy.pivot_table(index=["method", "selection"], columns="ratio", values="value").round(3)

# %% [markdown]
# By one readout, ridge, fitted alike for both: what differs between rows is the objective, and
# the epoch.
#
# ## A plot of one's own
#
# What becomes of wrong labels along training, which the early stopping in the table above makes
# use of:

# %%
# %matplotlib inline
import matplotlib.pyplot as plt

history = frames.history.query(
    "measure == 'fit_corrupted' and readout == 'ridge' and layer == 'features'"
).merge(frames.runs[["run", "method", "ratio"]], on="run")
figure, panel = plt.subplots(figsize=(6, 3.4), layout="constrained")
for (method, ratio), each in history[history.ratio > 0].groupby(["method", "ratio"]):
    colour = {"ce": "#0072B2", "mcr2": "#D55E00"}[method]
    panel.plot(
        each.epoch,
        each.value,
        "-" if ratio == 0.5 else "--",
        color=colour,
        label=f"{method}, {ratio}",
    )
panel.set(xlabel="epoch", ylabel="share of wrong labels reproduced", ylim=(0, 1.02))
panel.legend(frameon=False)
panel.grid(alpha=0.25)

# %% [markdown]
# Where to go on: [what a run leaves](../records.md), [every option of the table](../table.md),
# and [other data](../data.md) or [kinds of noise](../noise.md).
