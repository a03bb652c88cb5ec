"""Times gloo's all_reduce among processes of this machine, over TCP on loopback, each on one thread.

    python allreduce.py --workers 4 --bytes 2000000,25000000

Prints {"ready": true} once warm, then answers each line `run N I` on stdin with {"seconds": [N times of the I-th size],
"phases": {"processor": [...]}}, as rank 0 sees them, the latter what its threads worked; ends with its stdin. The sum is
made in the tensor, without a copy.
"""

import argparse
import json
import os
import sys
import tempfile
from time import perf_counter, process_time

import torch
from torch import distributed
from torch.multiprocessing import get_context

WARM_UP_STEPS = 5


def work(rank, workers, sizes, store, commands):
    """One rank: sums as often and as much as each command says, and sends back the times."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=workers)
    tensor = torch.zeros(max(sizes) // 4)
    while (command := commands.recv()) is not None:
        steps, size = command
        values = tensor[: sizes[size] // 4]
        seconds, processor = [], []
        for _ in range(steps):
            values.fill_(rank + 1)
            start, before = perf_counter(), process_time()
            distributed.all_reduce(values)
            seconds.append(perf_counter() - start)
            processor.append(process_time() - before)
        assert (values == workers * (workers + 1) // 2).all()
        commands.send({"seconds": seconds, "phases": {"processor": processor}})
    distributed.destroy_process_group()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--bytes", default="25000000")
    options = parser.parse_args()
    sizes = [int(size) for size in options.bytes.split(",")]
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    context = get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(options.workers):
            ours, theirs = context.Pipe()
            arguments = (rank, options.workers, sizes, os.path.join(folder, "store"), theirs)
            process = context.Process(target=work, args=arguments, daemon=True)
            process.start()
            theirs.close()  # so that a dead rank reads as the end of its pipe
            pipes.append(ours)
            processes.append(process)

        def run(steps, size):
            for pipe in pipes:
                pipe.send((steps, size))
            return [pipe.recv() for pipe in pipes][0]

        for size in range(len(sizes)):
            run(WARM_UP_STEPS, size)
        print(json.dumps({"ready": True, "torch": torch.__version__}), flush=True)
        for line in sys.stdin:
            steps, size = map(int, line.split()[1:])
            print(json.dumps(run(steps, size)), flush=True)
        for pipe in pipes:
            pipe.send(None)
        for process in processes:
            process.join()


if __name__ == "__main__":
    main()
