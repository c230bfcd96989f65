"""A backbone of one's own: `mcr2 table --set backbone=docs/my_backbone.py:Net` runs it."""

from torch import nn


class Net(nn.Module):
    """Two convolutions; the children of the module are the layers that can be measured."""

    def __init__(self, in_channels, feature_dim):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(in_channels, 32, 3), nn.BatchNorm2d(32), nn.ReLU())
        self.conv2 = nn.Sequential(nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64), nn.ReLU())
        self.project = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, feature_dim)
        )

    def forward(self, images):
        return self.project(self.conv2(self.conv1(images)))
