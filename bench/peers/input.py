"""Times PyTorch's input: a folder's JPEGs to batches of random crops, by a DataLoader with torchvision's v2 transforms.

    python input.py --data photographs --workers 2 --decoder io

A step is a batch of 64, timed from when the batch before was taken. Speaks the protocol of step.py.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path
from time import perf_counter

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_image, read_file
from torchvision.transforms import v2

BATCH = 64
PREFETCH = 2  # batches a worker prepares ahead of need


class Photographs(Dataset):
    """Item i: u8[3, 224, 224], a random crop of file i modulo their number."""

    def __init__(self, files, decoder):
        self.files = files
        self.decoder = decoder
        self.crop = v2.Compose([v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip()])

    def __getitem__(self, index):
        file = self.files[index % len(self.files)]
        if self.decoder == "io":
            return self.crop(decode_image(read_file(file), ImageReadMode.RGB))
        with Image.open(file) as image:
            return v2.functional.pil_to_tensor(self.crop(image.convert("RGB")))


class Endless(torch.utils.data.Sampler):
    """Every file once, then every file once more in another order, and so on."""

    def __init__(self, count):
        self.count = count

    def __iter__(self):
        return (int(i) for _ in itertools.count() for i in torch.randperm(self.count))


def batches(options):
    files = [str(file) for file in sorted(Path(options.data).rglob("*")) if file.suffix.lower() in (".jpg", ".jpeg")]
    workers = {"prefetch_factor": PREFETCH} if options.workers > 0 else {}
    data = Photographs(files, options.decoder)
    return iter(DataLoader(data, BATCH, sampler=Endless(len(files)), num_workers=options.workers, **workers))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--decoder", choices=["io", "pil"], default="io")
    options = parser.parse_args()
    torch.set_num_threads(1)
    coming = batches(options)
    drained = 2 * PREFETCH * options.workers  # what was prepared while nobody asked is not counted
    for _ in range(1 + drained):
        next(coming)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        for _ in range(drained):
            next(coming)
        seconds = []
        for _ in range(int(line.split()[1])):
            start = perf_counter()
            next(coming)
            seconds.append(perf_counter() - start)
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
