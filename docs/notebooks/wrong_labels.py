# %% [markdown]
# # Which of my labels are wrong
#
# An audit ranks samples by how wrong their labels look and suggests a label for each. To see how
# well it does, a fifth of the labels of scikit-learn's digits are redrawn here, so that the truth
# is known.

# %%
import matplotlib.pyplot as plt
import pandas as pd

from mcr2.audit import audit, audit_all, make_given, pixel_features, quality
from mcr2.data import load_dataset
from mcr2.noise import parse_noise

train = load_dataset("digits").train
noisy = parse_noise("symmetric", 0.2).apply(train, num_classes=10, seed=0)
noisy

# %% [markdown]
# ## The audit
#
# With nothing trained: features are the pixels, projected on their 64 leading directions.
# Features of a network serve as well, `(N, d)` in any array; of photographs they are needed.

# %%
features = pixel_features(train.images)
found = audit(features, noisy.labels)
print(found.estimate().wrong, "look wrong,", int(noisy.wrong.sum()), "are")
quality(found.scores, noisy.labels, noisy.truth)

# %% [markdown]
# The most suspicious samples, with the label that they were given and the one that is suggested.

# %%
figure, axes = plt.subplots(2, 8, figsize=(9, 2.9), layout="constrained")
for panel, i in zip(axes.flat, found.ranking[:16].tolist(), strict=True):
    panel.imshow(train.images[i, 0], cmap="Greys")
    panel.set_title(f"{int(noisy.labels[i])} → {int(found.suggested[i])}", fontsize=10)
    panel.axis("off")

# %% [markdown]
# ## Which score?
#
# There are [seven](../audit.md#the-scores); those that need neither a head nor a training, side
# by side (and cleanlab's, where it is installed). AUROC is the probability that a wrong label
# scores above a right one; precision is the share of wrong ones among as many of the most
# suspicious as are wrong.

# %%
given = make_given(features, noisy.labels)
scores = {
    name: quality(each.scores, noisy.labels, noisy.truth) for name, each in audit_all(given).items()
}
pd.DataFrame(
    {name: {"AUROC": q.auroc, "precision": q.precision_at_count} for name, q in scores.items()}
).T.sort_values("AUROC", ascending=False).round(3)

# %% [markdown]
# ## A cleaned data set
#
# Look before you drop anything: rare samples look wrong too. The twentieth that is most
# suspicious, left out:

# %%
doubtful = found.ranking[: len(train) // 20]
kept = pd.Index(range(len(train))).difference(doubtful.tolist())
wrong = int(noisy.wrong[doubtful].sum())
print(f"{len(kept)} kept; of {len(doubtful)} left out {wrong} were wrong")

# %% [markdown]
# The same of a folder of images or a file, with contact sheets, tables and a cleaned copy:
#
#     mcr2 audit path/to/folder --apply drop --share 0.05 --out cleaned.npz
#
# [All options, and how well it works on photographs and human labels](../audit.md).
