"""What all tests share."""

import pytest
import torch

# One thread a process: small tensors gain nothing from more, and test processes run side by side.
torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Decoded data sets are cached under a folder of the tests, not under the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
