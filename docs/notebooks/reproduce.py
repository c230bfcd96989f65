# %% [markdown]
# # Reproduce the table
#
# The label-noise table trains cross-entropy and MCR² on labels of which a share was redrawn, and
# measures both alike. All of it, three seeds at six ratios, is a command of some minutes:
#
#     make table          # or, installed: mcr2 table
#
# Here a smaller one is run from Python, one seed at three ratios. Each option of `mcr2 table` is a
# field of `LabelNoise`; run again, the cell continues a study that was interrupted, and further
# ratios, seeds or methods extend it.

# %%
from pathlib import Path

from experiments.studies.label_noise import LabelNoise

study = LabelNoise(ratios=(0, 0.3, 0.5), seeds=(0,), out=Path("results/notebook"))
run = study.prepare()
status = run()

# %% [markdown]
# What the tables mean is on [the table's page](../table.md#the-tables); `report.html` in the folder
# has all of them.
#
# ## Its tables and figures
#
# A finished study is opened from its folder, also one that was made elsewhere. Figures are drawn
# for one's own changes.

# %%
import experiments

held = experiments.load_study("results/notebook")
figure = held.figure("accuracy")
figure.set_size_inches(10, 2.6)
figure

# %% [markdown]
# ## In pandas
#
# `frames.runs` has a row a run, `frames.history` what was measured along training,
# `frames.evaluations` what was measured at the epochs that the selection rules chose. By one
# readout, ridge, which is fitted alike for both: what differs between rows is the objective, and
# the epoch.

# %%
frames = held.frames  # or mcr2.load_study("results/notebook")
accuracy = frames.evaluations.query(
    "measure == 'accuracy' and split == 'test' and readout == 'ridge' and layer == 'features'"
).merge(frames.runs[["run", "method", "ratio", "seed"]], on="run")
accuracy.pivot_table(index=["method", "selection"], columns="ratio", values="value").round(3)

# %% [markdown]
# ## A plot of one's own
#
# What becomes of wrong labels along training: the share that each network reproduces. Early
# stopping chooses an epoch before cross-entropy has taken them up.

# %%
import matplotlib.pyplot as plt

history = frames.history.query("measure == 'fit_corrupted' and readout == 'ridge'")
history = history.merge(frames.runs[["run", "method", "ratio"]], on="run").query("ratio > 0")
figure, panel = plt.subplots(figsize=(6, 3.4), layout="constrained")
for (method, ratio), each in history.groupby(["method", "ratio"]):
    colour = {"ce": "#0072B2", "mcr2": "#D55E00"}[method]
    style = "-" if ratio == 0.5 else "--"
    panel.plot(each.epoch, each.value, style, color=colour, label=f"{method}, {ratio}")
panel.set(xlabel="epoch", ylabel="wrong labels reproduced", ylim=(0, 1.02))
panel.legend(frameon=False)
panel.grid(alpha=0.25)

# %% [markdown]
# Where to go on: [what a run leaves](../records.md), [every option of the table](../table.md), and
# [other data](../data.md) or [kinds of noise](../noise.md).
