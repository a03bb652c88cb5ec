"""Times PyTorch's training steps of FFL.

    python step.py --network cifar --precision bf16 --mode compiled

A step: a uint8 NHWC batch in memory -> normalise -> forward -> losses -> backward -> SGD -> the total loss as a number.
Prints {"ready": true} once warm, then answers each line `run N` on stdin with {"seconds": [N step times], "loss": x,
"peakBytes": most resident memory so far}; ends with its stdin. So several of these can stay warm side by side and be asked in turn.
"""

import argparse
import json
import resource
import sys
from time import perf_counter

import torch

from ffl import FFL, ffl_losses, optimiser_of
from imagenet import ImageNetFFL

BATCHES = 4  # different ones, used in turn: more than any cache holds
BATCH = {"cifar": 128, "imagenet": 32}
WARM_UP_STEPS = 3
RAMP_UP_WEIGHT = 0.286505  # w(40)


def training_step(options):
    """A function that runs one training step and returns its total loss."""
    torch.manual_seed(1)
    if options.network == "cifar":
        size, classes = 32, 100
        model = FFL(32, 16, options.branches, classes, not options.unshared)
    else:
        size, classes = 224, 1000
        model = ImageNetFFL(options.branches, classes)
    model = model.to(memory_format=torch.channels_last)
    optimiser = optimiser_of(model)
    images = torch.randint(0, 256, (BATCHES, options.batch, size, size, 3), dtype=torch.uint8)
    labels = torch.randint(0, classes, (BATCHES, options.batch))

    def total_loss(images, labels):
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16"):
            logits, fused = model(images)
        return ffl_losses(logits, fused, labels, RAMP_UP_WEIGHT)["total"]

    if options.mode == "compiled":
        total_loss = torch.compile(total_loss)

    def step(n):
        optimiser.zero_grad()
        loss = total_loss(images[n % BATCHES], labels[n % BATCHES])
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


def parse_options():
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", choices=["cifar", "imagenet"], default="cifar")
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--mode", choices=["eager", "compiled"], default="eager")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, help="default: what Braid's recipe of the network has")
    parser.add_argument("--branches", type=int, default=2)
    parser.add_argument("--unshared", action="store_true")
    options = parser.parse_args()
    options.batch = options.batch or BATCH[options.network]
    return options


def main():
    options = parse_options()
    torch.set_num_threads(options.threads)
    step = training_step(options)
    n = 0
    for n in range(WARM_UP_STEPS):
        step(n)
    print(json.dumps({"ready": True, "torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line.split()[1])):
            n += 1
            start = perf_counter()
            loss = step(n)
            seconds.append(perf_counter() - start)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "loss": loss, "peakBytes": peak}), flush=True)


if __name__ == "__main__":
    main()
