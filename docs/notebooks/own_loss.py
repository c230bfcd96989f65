# %% [markdown]
# # own_loss

# %%
1 + 1
