"""Times PyTorch DistributedDataParallel (gloo) training FFL from CIFAR-100 files, input pipeline included.

    python ddp.py --data data/cifar100 --workers 2 --threads 1

Each worker reads its half of every global batch from train.bin, augments it (reflect 4, crop, flip), and takes a step.
Prints {"ready": true} once warm, then answers each line `run N` on stdin with {"seconds": [N step times], "loss": x},
as rank 0 sees them; ends with its stdin.
"""

import argparse
import json
import os
import sys
import tempfile
from time import perf_counter

import numpy as np
import torch
from torch import distributed
from torch.multiprocessing import get_context
from torch.nn.parallel import DistributedDataParallel

from ffl import FFL, ffl_losses, optimiser_of

RECORD_BYTES = 2 + 3 * 32 * 32  # coarse label, fine label, then the image channel by channel
PAD = 4
WARM_UP_STEPS = 5  # DDP rebuilds its buckets after the first
RAMP_UP_WEIGHT = 0.286505  # w(40)


class Shards:
    """This rank's part of each global batch, in a fresh order each epoch. On this thread: 1 ms a step."""

    def __init__(self, path, batch, rank, workers):
        self.records = np.fromfile(path, np.uint8).reshape(-1, RECORD_BYTES)
        self.batch, self.rank, self.workers = batch, rank, workers
        self.random = np.random.default_rng((1, rank))

    def __iter__(self):
        shard = self.batch // self.workers
        for epoch in range(1 << 30):
            order = np.random.default_rng((2, epoch)).permutation(len(self.records))
            for first in range(self.rank * shard, len(order) - self.batch + 1, self.batch):
                records = self.records[order[first : first + shard]]
                images = records[:, 2:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
                yield torch.from_numpy(self.augment(images)), torch.from_numpy(records[:, 1].astype(np.int64))

    def augment(self, images):
        """u8[B, 32, 32, 3] -> the same, each image reflected by 4, cropped at random, and mirrored half of the time."""
        padded = np.pad(images, ((0, 0), (PAD, PAD), (PAD, PAD), (0, 0)), "reflect")
        out = np.empty(images.shape, np.uint8)
        places = self.random.integers(0, 2 * PAD + 1, (len(images), 2))
        mirrored = self.random.random(len(images)) < 0.5
        for i, (y, x) in enumerate(places):
            crop = padded[i, y : y + 32, x : x + 32]
            out[i] = crop[:, ::-1] if mirrored[i] else crop
        return out


def work(rank, options, store, commands):
    """One rank: takes as many steps as each command says, and sends back their times and the last loss."""
    torch.set_num_threads(options.threads)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=options.workers)
    torch.manual_seed(1)
    model = FFL(options.depth, 16, options.branches, options.classes, not options.unshared)
    model = DistributedDataParallel(model.to(memory_format=torch.channels_last), gradient_as_bucket_view=True)
    optimiser = optimiser_of(model.module)
    shards = iter(Shards(os.path.join(options.data, "train.bin"), options.batch, rank, options.workers))

    def step():
        images, labels = next(shards)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16"):
            logits, fused = model(images)
        loss = ffl_losses(logits, fused, labels, RAMP_UP_WEIGHT)["total"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.item()

    while (steps := commands.recv()) > 0:
        seconds = []
        for _ in range(steps):
            start = perf_counter()
            loss = step()
            seconds.append(perf_counter() - start)
        commands.send({"seconds": seconds, "loss": loss})
    distributed.destroy_process_group()


def parse_options():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each worker")
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--batch", type=int, default=128, help="global")
    parser.add_argument("--depth", type=int, default=32)
    parser.add_argument("--branches", type=int, default=2)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--unshared", action="store_true")
    return parser.parse_args()


def main():
    options = parse_options()
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    context = get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(options.workers):
            ours, theirs = context.Pipe()
            arguments = (rank, options, os.path.join(folder, "store"), theirs)
            process = context.Process(target=work, args=arguments, daemon=True)
            process.start()
            theirs.close()  # so that a dead rank reads as the end of its pipe
            pipes.append(ours)
            processes.append(process)

        def run(steps):
            for pipe in pipes:
                pipe.send(steps)
            return [pipe.recv() for pipe in pipes][0]

        run(WARM_UP_STEPS)
        print(json.dumps({"ready": True, "torch": torch.__version__}), flush=True)
        for line in sys.stdin:
            print(json.dumps(run(int(line.split()[1]))), flush=True)
        for pipe in pipes:
            pipe.send(0)
        for process in processes:
            process.join()


if __name__ == "__main__":
    main()
