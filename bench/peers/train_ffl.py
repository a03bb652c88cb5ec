"""Trains FFL with PyTorch from a recipe of Braid and a data set of image files: the peer of whole runs.

    node bin/braid.mjs config <recipe> > recipe.yaml
    bench/.venv/bin/python bench/peers/train_ffl.py --recipe recipe.yaml --train train.tar --test test.tar \\
        --seed 1 --threads 2 --out runs/peer/pytorch-ffl-seed1

The network, losses and optimisers are the authors' (ffl.py). --out gets what a run of Braid leaves, in the same formats
(docs/summary.md), as far as it applies: recipe.yaml, metrics.jsonl, and, written last, summary.json. There are no
checkpoints: a run that was interrupted starts again, one that has its summary.json is left as it is.
"""

import argparse
import json
import math
import os
import secrets
import sys
from pathlib import Path
from statistics import median_high
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from ffl import FFL, ensemble_of, ffl_losses, optimiser_of
from images import augmented, read_image_tar
from recipe import distill_weight_at, format_recipe, learning_rate_at, read_recipe

SUMMARY_LOSS_STEPS = 20  # as in coordinator/recorder.ts: one step's losses alone are noise


class Trainer:
    """The model, its optimiser, and what the recipe says of both. Shapes as in ffl.py."""

    def __init__(self, recipe, classes):
        self.training, self.method = recipe["training"], recipe["method"]
        branch, data, training = recipe["branches"][0], recipe["data"], self.training
        self.model = FFL(
            branch["depth"],
            branch["width"],
            branch["count"],
            classes,
            recipe["trunk"] == "shared",
            data["mean"],
            data["std"],
        ).to(memory_format=torch.channels_last)
        self.optimiser = optimiser_of(
            self.model,
            training["learningRate"],
            training["momentum"],
            training["nesterov"],
            training["weightDecay"],
            training["fusionWeightDecay"],
        )

    def forward(self, images):
        """u8[B, H, W, 3] -> logits and fused, f32."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.training["precision"] == "bf16"):
            logits, fused = self.model(images)
        return [z.float() for z in logits], fused.float()

    def step(self, images, labels, learning_rate, distill_weight):
        """One update of all weights. -> every loss term and the total, nats, before it."""
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        logits, fused = self.forward(images)
        method = self.method
        losses = ffl_losses(logits, fused, labels, distill_weight, method["temperature"], method["teacherEpsilon"])
        self.optimiser.zero_grad()
        losses["total"].backward()
        self.optimiser.step()
        return {name: loss.item() for name, loss in losses.items()}

    @torch.inference_mode()
    def evaluate(self, images, labels, batch):
        """-> a classifier's result each, as coordinator/evaluation.ts has them: counts first, rates from them."""
        self.model.eval()
        scores = {}  # classifier: [top-1 count, top-5 count, sum of cross-entropies]
        for first in range(0, len(labels), batch):
            y = labels[first : first + batch]
            logits, fused = self.forward(images[first : first + batch])
            outputs = {f"branch.{k}": z for k, z in enumerate(logits)}
            outputs |= {"ensemble": ensemble_of(logits), "fused": fused}
            for classifier, z in outputs.items():
                right = z.topk(min(5, z.shape[1])).indices == y[:, None]
                loss = F.cross_entropy(z, y, reduction="sum").item()
                score = [right[:, 0].sum().item(), right.sum().item(), loss]
                scores[classifier] = [a + b for a, b in zip(scores.get(classifier, (0, 0, 0)), score)]
        self.model.train()
        branches = [scores[f"branch.{k}"] for k in range(len(logits))]
        mean = result("branches", len(labels) * len(branches), *(sum(each) for each in zip(*branches)))
        results = [result(classifier, len(labels), *score) for classifier, score in scores.items()]
        return [*results[: len(branches)], mean, *results[len(branches) :]]


def result(classifier, samples, top1, top5, loss_sum):
    return {
        "classifier": classifier,
        "samples": samples,
        "top1Correct": top1,
        "top5Correct": top5,
        "top1Accuracy": top1 / samples,
        "top5Accuracy": top5 / samples,
        "top1Error": 1 - top1 / samples,
        "top5Error": 1 - top5 / samples,
        "loss": loss_sum / samples,
    }


def train(recipe, data, trainer, record):
    """Every step and evaluation of a run. @param data from read_data @returns the results after the last step"""
    training, evaluation = recipe["training"], recipe["evaluation"]
    pad, pad_mode, flip = (recipe["data"]["augment"][key] for key in ("pad", "padMode", "flip"))
    for step in range(record.steps):
        before = perf_counter()
        epoch, index = divmod(step, record.steps_per_epoch)
        if index == 0:
            learning_rate = learning_rate_at(training, epoch)
            distill_weight = distill_weight_at(recipe["method"]["rampUp"], epoch)
            random = np.random.default_rng((recipe["seed"], epoch))
            order = random.permutation(len(data.labels))
        ids = order[index * training["batch"] : (index + 1) * training["batch"]]
        images = torch.from_numpy(augmented(data.images, ids, random, pad, pad_mode, flip))
        losses = trainer.step(images, data.labels[ids], learning_rate, distill_weight)
        if not math.isfinite(losses["total"]):
            raise SystemExit(f"step {step}: the loss is {losses['total']}: lower training.learningRate")
        record.step(step, epoch, losses, learning_rate, distill_weight, len(ids), perf_counter() - before)

        last = step + 1 == record.steps
        if last or (index + 1 == record.steps_per_epoch and (epoch + 1) % evaluation["everyEpochs"] == 0):
            before = perf_counter()
            results = trainer.evaluate(data.test_images, data.test_labels, evaluation["batch"])
            record.evaluated(step, epoch, results, perf_counter() - before)
    return results


class Data(NamedTuple):
    """Images u8[N, 32, 32, 3], labels i64[N]; what is augmented is numpy's, all else torch's."""

    images: np.ndarray
    labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    classes: int


def read_data(path, test_path, classes):
    """@param classes how many the networks tell apart; None: as many as there are"""
    say(f"reading {path} and {test_path}")
    images, labels, names = read_image_tar(path)
    test_images, test_labels, test_names = read_image_tar(test_path)
    if names != test_names:
        raise SystemExit(f"{path} has the classes {names}, {test_path} has {test_names}")
    test = torch.from_numpy(test_images), torch.from_numpy(test_labels)
    return Data(images, torch.from_numpy(labels), *test, classes or len(names))


class Record:
    """metrics.jsonl, a line on the terminal every epoch, and the summary's figures."""

    def __init__(self, recipe, samples, path):
        training = recipe["training"]
        self.path, self.samples, self.epochs = path, samples, training["epochs"]
        self.log_every = recipe["metrics"]["logEverySteps"]
        self.steps_per_epoch = math.ceil(samples / training["batch"])
        self.steps = min(self.epochs * self.steps_per_epoch, training["maxSteps"] or sys.maxsize)
        self.samples_of, self.seconds_of, self.losses_of = [], [], []  # by step
        path.write_text("")

    def step(self, step, epoch, losses, learning_rate, distill_weight, samples, seconds):
        """A step took `seconds`, its input included."""
        self.samples_of.append(samples)
        self.seconds_of.append(seconds)
        self.losses_of.append(losses)
        done = step + 1
        if done % self.log_every != 0 and done != self.steps:
            return
        rate = self.rate_since(step - step % self.log_every)
        self.write(
            kind="step",
            step=step,
            epoch=epoch,
            losses=losses,
            learningRate=learning_rate,
            distillWeight=distill_weight,
            imagesPerSecond=rate,
            secondsLeft=(self.steps - done) * self.samples / self.steps_per_epoch / rate,
        )

    def evaluated(self, step, epoch, results, seconds):
        """The test set has been evaluated after this step."""
        self.write(kind="epoch", epoch=epoch, step=step + 1, seconds=seconds, results=results)
        shown = [f"{r['classifier'].replace('.', ' ')} {100 * r['top1Accuracy']:.2f} %" for r in results]
        rate = self.rate_since(epoch * self.steps_per_epoch)
        say(f"epoch {epoch + 1}/{self.epochs}: {rate:,.0f} images/s; test top-1: {', '.join(shown)}")

    def write(self, **line):
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")

    def rate_since(self, step):
        """Training images per second from this step on."""
        return sum(self.samples_of[step:]) / sum(self.seconds_of[step:])

    def totals(self):
        """What the summary says of the training steps."""
        recent = self.losses_of[-SUMMARY_LOSS_STEPS:]
        return {
            "losses": {name: sum(losses[name] for losses in recent) / len(recent) for name in recent[0]},
            "lossSteps": len(recent),
            "trainSeconds": sum(self.seconds_of),
            "imagesPerSecond": self.rate_since(0),
            "medianStepSeconds": median_high(self.seconds_of),
        }


def run(recipe, out):
    """A whole run, from the files to its summary."""
    data = read_data(recipe["data"]["path"], recipe["data"]["testPath"], recipe["data"]["classes"])
    torch.manual_seed(recipe["seed"])
    trainer = Trainer(recipe, data.classes)
    record = Record(recipe, len(data.labels), out / "metrics.jsonl")
    parameters = sum(p.numel() for p in trainer.model.parameters())
    precision, threads = recipe["training"]["precision"], torch.get_num_threads()
    framework = f"PyTorch {torch.__version__}"
    say(f"{parameters:,} parameters, {len(data.labels):,} training and {len(data.test_labels):,} test images")
    say(f"{record.steps:,} steps in {precision}, {framework} on {threads} threads")
    start = perf_counter()
    results = train(recipe, data, trainer, record)
    return {
        "run": f"{recipe['name']}-{secrets.token_hex(4)}",
        "name": recipe["name"],
        "framework": framework,
        "method": "ffl",
        "placement": "together",
        "branches": len(trainer.model.branch),
        "workers": 1,
        "devices": ["CPU"],
        "threads": threads,
        "precision": precision,
        "seed": recipe["seed"],
        "parameters": parameters,
        "steps": record.steps,
        "epochs": math.ceil(record.steps / record.steps_per_epoch),
        "trainSamples": len(data.labels),
        "testSamples": len(data.test_labels),
        "results": results,
        "seconds": perf_counter() - start,
        **record.totals(),
        "paths": {
            "folder": str(out),
            "recipe": str(out / "recipe.yaml"),
            "metrics": str(record.path),
            "summary": str(out / "summary.json"),
        },
    }


def say(text):
    print(text, flush=True)


def parse_options():
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", required=True, help="resolved: what `braid config` prints, or a run's recipe.yaml")
    parser.add_argument("--out", required=True, type=Path, help="the run's folder")
    parser.add_argument("--train", help=".tar of images with a sub-folder a class; data.path where left out")
    parser.add_argument("--test", help="the same for the test set; data.testPath where left out")
    parser.add_argument("--seed", type=int, help="the recipe's where left out")
    parser.add_argument("--max-steps", type=int, help="training.maxSteps")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser.parse_args()


def main():
    options = parse_options()
    recipe = read_recipe(options.recipe)
    for section, key, value in (
        (recipe, "seed", options.seed),
        (recipe["data"], "path", options.train),
        (recipe["data"], "testPath", options.test),
        (recipe["training"], "maxSteps", options.max_steps),
    ):
        if value is not None:
            section[key] = value
    torch.set_num_threads(options.threads)

    out = options.out.resolve()
    settings, summary = out / "recipe.yaml", out / "summary.json"
    if summary.exists():
        if settings.read_text() != format_recipe(recipe):
            raise SystemExit(f"{out} holds a run of other settings: name another folder, or remove it")
        say(f"{out} is done already: nothing to do")
        return
    out.mkdir(parents=True, exist_ok=True)
    settings.write_text(format_recipe(recipe))
    aside = out / "summary.json.aside"
    aside.write_text(json.dumps(run(recipe, out), indent=2) + "\n")
    aside.rename(summary)
    say(f"wrote {summary}")


if __name__ == "__main__":
    main()
