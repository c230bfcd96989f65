# %% [markdown]
# # own_features

# %%
1 + 1
