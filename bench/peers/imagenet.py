"""FFL on ResNets for 224-pixel images: torchvision's layers, parted after layer2 as Braid parts them. See ffl.py."""

import torch
from torch import nn
from torchvision.models import resnet34

from ffl import Fusion

MEAN = (123.675, 116.28, 103.53)  # ImageNet, on the 0..255 scale
STD = (58.395, 57.12, 57.375)
CHANNELS = 512  # of the last feature maps


class Branch(nn.Module):
    """[B, 128, 28, 28] -> features [B, 512, 7, 7] after the last ReLU, and logits [B, C]."""

    def __init__(self, network):
        super().__init__()
        self.layers = nn.Sequential(network.layer3, network.layer4)
        self.fc = network.fc

    def forward(self, x):
        features = self.layers(x)
        return features, self.fc(features.mean((2, 3)))


class ImageNetFFL(nn.Module):
    """ResNet-34: K branches of layer3 and layer4 on one trunk, and their fusion."""

    def __init__(self, branches, classes):
        super().__init__()
        networks = [resnet34(num_classes=classes) for _ in range(branches)]
        first = networks[0]
        self.trunk = nn.Sequential(
            first.conv1, first.bn1, first.relu, first.maxpool, first.layer1, first.layer2
        )
        self.branch = nn.ModuleList(Branch(network) for network in networks)
        self.fusion = Fusion(branches, CHANNELS, classes)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images):
        """u8[B, 224, 224, 3] -> logits of each branch, K times [B, C], and the fused logits [B, C]."""
        x = self.trunk((images.permute(0, 3, 1, 2) - self.mean) / self.std)
        features, logits = zip(*(branch(x) for branch in self.branch))
        return list(logits), self.fusion(features)
