"""What all tests share."""

import torch

# One thread a process: small tensors gain nothing from more, and test processes run side by side.
torch.set_num_threads(1)
