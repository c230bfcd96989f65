# %% [markdown]
# # wrong_labels

# %%
1 + 1
