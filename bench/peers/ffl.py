"""FFL on CIFAR-style ResNets of depth 6n+2, in plain PyTorch: what Braid is measured against.

Kim et al. 2020, arXiv 1904.09058, as the authors' code has it: K branches that may share their trunk, a fusion module
over their last feature maps, and mutual distillation between the fused classifier and the branches.

Shapes: B samples, K branches, C classes, H x W pixels. Images come as uint8 NHWC, everything inside is channels_last.
"""

import torch
import torch.nn.functional as F
from torch import nn

MEAN = (129.3, 124.1, 112.4)  # CIFAR-100, on the 0..255 scale
STD = (68.2, 65.4, 70.4)
TEMPERATURE = 3.0
TEACHER_EPSILON = 1e-7  # added to a teacher's probabilities, which are not renormalised after it


def conv(channels_in, channels_out, kernel, stride=1, groups=1):
    layer = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    nn.init.normal_(layer.weight, std=(2 / (kernel * kernel * channels_out)) ** 0.5)
    return layer


class BasicBlock(nn.Module):
    def __init__(self, channels_in, channels, stride):
        super().__init__()
        self.conv1 = conv(channels_in, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.down = None
        if stride != 1 or channels_in != channels:
            self.down = nn.Sequential(conv(channels_in, channels, 1, stride), nn.BatchNorm2d(channels))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.down is None else self.down(x)))


def stage(channels_in, channels, blocks, stride):
    first = BasicBlock(channels_in, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))


class Trunk(nn.Module):
    """[B, 3, H, W] -> [B, 2 width, H/2, W/2]: the stem and the first two stages."""

    def __init__(self, blocks, width):
        super().__init__()
        self.conv1 = conv(3, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = stage(width, width, blocks, 1)
        self.layer2 = stage(width, 2 * width, blocks, 2)

    def forward(self, x):
        return self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x)))))


class Branch(nn.Module):
    """[B, 2 width, H/2, W/2] -> features [B, 4 width, H/4, W/4] after the last ReLU, and logits [B, C]."""

    def __init__(self, blocks, width, classes):
        super().__init__()
        self.layer3 = stage(2 * width, 4 * width, blocks, 2)
        self.fc = nn.Linear(4 * width, classes)

    def forward(self, x):
        features = self.layer3(x)
        return features, self.fc(features.mean((2, 3)))


class Fusion(nn.Module):
    """K feature maps of N channels each -> logits [B, C]."""

    def __init__(self, branches, channels, classes):
        super().__init__()
        wide = branches * channels
        self.depthwise = conv(wide, wide, 3, groups=wide)
        self.bn1 = nn.BatchNorm2d(wide)
        self.pointwise = conv(wide, channels, 1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, classes)

    def forward(self, features):
        u = F.relu(self.bn1(self.depthwise(torch.cat(features, 1))))
        v = F.relu(self.bn2(self.pointwise(u)))
        return self.fc(v.mean((2, 3)))


class FFL(nn.Module):
    """K branches on one trunk or on K of them, and their fusion. With one branch: a plain ResNet, `fusion` is None."""

    def __init__(self, depth=32, width=16, branches=2, classes=100, shared=True, mean=MEAN, std=STD):
        super().__init__()
        blocks = (depth - 2) // 6
        self.trunk = nn.ModuleList(Trunk(blocks, width) for _ in range(1 if shared else branches))
        self.branch = nn.ModuleList(Branch(blocks, width, classes) for _ in range(branches))
        self.fusion = Fusion(branches, 4 * width, classes) if branches > 1 else None
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images):
        """u8[B, H, W, 3] -> logits of each branch, K times [B, C], and the fused logits [B, C]."""
        x = (images.permute(0, 3, 1, 2) - self.mean) / self.std  # a view: NHWC memory is channels_last
        trunks = [trunk(x) for trunk in self.trunk]
        features, logits = zip(*(branch(trunks[k % len(trunks)]) for k, branch in enumerate(self.branch)))
        return list(logits), None if self.fusion is None else self.fusion(features)


def distill(teacher, student, temperature=TEMPERATURE, epsilon=TEACHER_EPSILON):
    """T^2 KL(teacher || student) in nats, mean over the batch. The teacher is a constant."""
    q = F.softmax(teacher.detach().float() / temperature, 1) + epsilon
    log_p = F.log_softmax(student.float() / temperature, 1)
    return temperature**2 * (q * (q.log() - log_p)).sum() / len(q)


def ensemble_of(logits):
    """K times [B, C] -> their mean, f32[B, C]: of logits, not of probabilities."""
    return sum(z.float() for z in logits) / len(logits)


def ffl_losses(logits, fused, labels, weight, temperature=TEMPERATURE, epsilon=TEACHER_EPSILON):
    """Every term, and their `total` = cross-entropies + weight (ekd + all fkd). `weight` is the ramp-up's w(epoch)."""
    losses = {f"ce.{k}": F.cross_entropy(z.float(), labels) for k, z in enumerate(logits)}
    if fused is None:
        return {**losses, "total": losses["ce.0"]}
    losses["ce.fused"] = F.cross_entropy(fused.float(), labels)
    supervised = sum(losses.values())
    distilled = {"ekd": distill(ensemble_of(logits), fused, temperature, epsilon)}
    distilled |= {f"fkd.{k}": distill(fused, z, temperature, epsilon) for k, z in enumerate(logits)}
    return {**losses, **distilled, "total": supervised + weight * sum(distilled.values())}


def optimiser_of(
    model, learning_rate=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4, fusion_weight_decay=1e-5
):
    """SGD, as a group each for the networks and the fusion module: the same updates as the authors' two optimisers."""
    networks = [*model.trunk.parameters(), *model.branch.parameters()]
    groups = [{"params": networks, "weight_decay": weight_decay}]
    if model.fusion is not None:
        groups.append({"params": model.fusion.parameters(), "weight_decay": fusion_weight_decay})
    return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, nesterov=nesterov, fused=True)
