"""Backbones have the sizes they say, named stages that compose, and are torchvision's blocks."""

import pytest
import torch
import torchvision

from mcr2.backbones import (
    BACKBONES,
    ResNet,
    check_backbone,
    named_stages,
    stage_features,
)
from mcr2.objectives import RateReduction
from mcr2.training import Encoder


def count(network):
    return sum(p.numel() for p in network.parameters())


def settled(network, seed=0):
    """Running statistics and affine parameters that are not the trivial ones; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias.data):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / 4)
            for tensor in (module.running_var, module.weight.data):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return network.eval()


def test_the_papers_network_has_the_papers_number_of_parameters():
    assert count(BACKBONES["resnet18"](in_channels=3, feature_dim=128)) == 11_497_664


def test_the_stages_are_named_and_compose_to_the_network():
    network = settled(ResNet((1, 2, 1), 8, in_channels=2, feature_dim=5))
    images = torch.rand(3, 2, 12, 12)
    names, x, shapes = [], images, []
    for name, stage in network.named_children():
        names.append(name)
        x = stage(x)
        shapes.append(tuple(x.shape[1:]))
        assert stage is getattr(network, name)
    assert names == ["stem", "stage1", "stage2", "stage3", "pool", "projection"]
    assert shapes == [(8, 12, 12), (8, 12, 12), (16, 6, 6), (32, 3, 3), (32,), (5,)]
    torch.testing.assert_close(x, network(images), rtol=0, atol=0)
    staged = {id(p) for _, stage in network.named_children() for p in stage.parameters()}
    assert staged == {id(p) for p in network.parameters()}


@pytest.mark.parametrize("size, stem_stride, last", [(8, 1, 1), (28, 1, 4), (32, 1, 4), (32, 2, 2)])
def test_small_and_usual_images_pass(size, stem_stride, last):
    network = BACKBONES["resnet10_w8"](in_channels=1, feature_dim=6, stem_stride=stem_stride)
    images = torch.rand(2, 1, size, size)
    assert network(images).shape == (2, 6)
    x = images
    for name, stage in network.named_children():
        if name == "pool":
            break
        x = stage(x)
    assert x.shape == (2, 64, last, last)


def test_without_a_projection_the_features_are_the_pooled_channels():
    network = settled(ResNet((1, 1), 4, in_channels=1, projection="none"))
    x = images = torch.rand(3, 1, 8, 8)
    for name in ("stem", "stage1", "stage2"):
        x = getattr(network, name)(x)
    torch.testing.assert_close(network(images), x.mean((2, 3)))


def test_feature_dim_defaults_to_the_pooled_width():
    assert ResNet((1, 1), 4, in_channels=1)(torch.rand(2, 1, 8, 8)).shape == (2, 8)
    assert ResNet((1, 1), 4, in_channels=1, feature_dim=3)(torch.rand(2, 1, 8, 8)).shape == (2, 3)


def test_resnet18_computes_what_torchvisions_resnet18_computes():
    ours = settled(BACKBONES["resnet18"](in_channels=3, feature_dim=512, projection="none"))
    theirs = torchvision.models.resnet18()
    theirs.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool, theirs.fc = torch.nn.Identity(), torch.nn.Identity()
    # Both list their tensors in the order of the data, so that names need no translation.
    theirs.load_state_dict(
        dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)), strict=True
    )
    images = torch.rand(2, 3, 12, 12)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs.eval()(images), rtol=1e-4, atol=1e-4)


def test_the_projection_is_linear_norm_relu_linear():
    network = settled(ResNet((1,), 4, in_channels=1, feature_dim=3))
    x = torch.randn(5, 4)
    first, norm, _, second = network.projection
    inner = (x @ first.weight.T - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    inner = (inner * norm.weight + norm.bias).clamp(min=0)
    expected = inner @ second.weight.T + second.bias
    torch.testing.assert_close(network.projection(x.clone()), expected)
    assert first.bias is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"projection": "linear"}, "unknown projection 'linear'; choose from mlp, none"),
        ({"projection": "none", "feature_dim": 7}, r"feature_dim is 7; .* pooled width \(8\)"),
        ({"feature_dim": 0}, "feature_dim is 0; it must be at least 1"),
        ({"in_channels": 0}, "in_channels is 0; it must be at least 1"),
        ({"stem_stride": 0}, "stem_stride is 0; it must be at least 1"),
        ({"width": 0}, "width is 0; it must be at least 1"),
        ({"blocks": ()}, "blocks is 0; it must be at least 1"),
        ({"blocks": (1, 0)}, r"blocks\[1\] is 0; it must be at least 1"),
    ],
)
def test_errors_name_what_was_given_and_what_is_allowed(arguments, message):
    given = {"blocks": (1, 1), "width": 4, "in_channels": 1} | arguments
    with pytest.raises(ValueError, match=message):
        ResNet(given.pop("blocks"), given.pop("width"), **given)


# ------------------------------------------------------------------------------------------ layers


IMAGES = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_features_of_a_resnets_stages_are_those_extracted_by_hand():
    network = settled(ResNet((1, 1), 8, in_channels=1, feature_dim=5))
    encoder = Encoder(network, RateReduction(2))
    names = encoder.layer_names()
    assert names == ("stem", "stage1", "stage2", "pool", "projection")
    got = encoder.layer_features(IMAGES, ["features", *names])
    x = IMAGES
    for name, stage in network.named_children():
        x = stage(x)
        expected = x.mean((2, 3)) if x.ndim == 4 else x
        assert got[name].shape == (4, expected.shape[1])
        assert torch.equal(got[name], expected), name
    assert torch.equal(got["features"], encoder(IMAGES))
    assert torch.equal(got["features"], torch.nn.functional.normalize(got["projection"]))
    assert list(encoder.layer_features(IMAGES, ["pool"])) == ["pool"]
    assert not any(module._forward_hooks for module in network.modules())


class Own(torch.nn.Module):
    """Branches, a shared and an unused module, a list of blocks, an output that is a tuple."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Linear(8, 6)
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)])
        self.relu = torch.nn.ReLU(inplace=True)
        self.unused = torch.nn.Linear(2, 2)
        self.pair = torch.nn.MultiheadAttention(6, 1, batch_first=True)
        self.features = torch.nn.Flatten()

    def forward(self, images):
        x = self.embed(images[:, 0])
        for block in self.blocks:
            x = x + self.relu(block(x))
        return self.features(self.pair(x, x, x)[0])


def test_the_stages_of_any_module_are_its_named_children():
    network = Own().eval()
    encoder = Encoder(network, RateReduction(2))
    assert encoder.layer_names() == ("embed", "blocks.0", "blocks.1", "relu", "unused", "pair")
    assert list(named_stages(network)) == [*encoder.layer_names(), "features"]
    output, got = stage_features(network, IMAGES, ["embed", "blocks.1", "features"])
    x = network.embed(IMAGES[:, 0])
    x = x + network.blocks[0](x).relu()
    assert torch.equal(got["embed"], network.embed(IMAGES[:, 0]).mean(2))
    # As it was before the activation changed it in place.
    assert torch.equal(got["blocks.1"], network.blocks[1](x).mean(2))
    assert torch.equal(got["features"], output)
    assert torch.equal(output, network(IMAGES))


def test_stages_that_give_no_features_are_refused_with_those_that_do():
    able = "choose from embed, blocks.0, relu, blocks.1, features"
    for name in ("unused", "pair"):
        with pytest.raises(ValueError, match=f"Own gives no features .* at {name}; {able}"):
            stage_features(Own(), IMAGES, ["embed", name])
    with pytest.raises(ValueError, match=r"unknown layer 'stage9'; choose from embed, blocks\.0"):
        stage_features(Own(), IMAGES, ["stage9"])


SIZES = {"in_channels": 1, "height": 8, "width": 8}


def test_a_backbone_that_fits_passes_and_is_left_as_it_was():
    network = ResNet((1,), 4, in_channels=1, feature_dim=5)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    draws = torch.get_rng_state()
    check_backbone(network, feature_dim=5, **SIZES)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training
    assert torch.equal(torch.get_rng_state(), draws)


@pytest.mark.parametrize(
    "module, message",
    [
        (torch.nn.Flatten(), r"Flatten makes a torch.float32 tensor of shape \(2, 64\) of images"),
        (torch.nn.Linear(7, 5), "Linear cannot take images .*: RuntimeError"),
        (torch.nn.Sequential(torch.nn.Flatten(0)), r"must be floating features \(2, 5\)"),
        (torch.nn.Sequential(torch.nn.LazyLinear(5)), "Sequential has lazy layers"),
        (torch.nn.LSTM(8, 5), "LSTM cannot take images"),
        (BACKBONES["resnet10_w8"](in_channels=3, feature_dim=5), "ResNet cannot take images"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_backbone_that_does_not_fit_is_refused_in_our_words(module, message):
    with pytest.raises(ValueError, match=message) as caught:
        check_backbone(module, feature_dim=5, **SIZES)
    assert "\n" not in str(caught.value)
