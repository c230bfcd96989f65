# %% [markdown]
# # reproduce

# %%
1 + 1
