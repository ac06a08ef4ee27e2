"""The training loop: one for all presets and both frameworks."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

import snn_ext
from recipes import checkpoint
from recipes.augment import sequence
from recipes.checkpoint import Parts, Place
from recipes.data import Split, load
from recipes.log import Log, Silence
from recipes.networks import build
from recipes.presets import Preset
from recipes.processes import Processes, processes
from recipes.sampler import TestBatches, TrainingBatches

SAVE_EVERY = 1000
"""Batches between two checkpoints inside an epoch; there is one at the end of every epoch too."""

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Options:
    """What a run needs beyond its preset.

    Attributes:
        data: folder of the data set.
        out: folder for checkpoint, log and model.
        resume: go on at the checkpoint in `out`.
        iterations: stop after so many batches since the start; None: after all epochs.
        amp: ``"bf16"``, ``"fp16"`` or ``"no"``; None: as the preset says, fp16 on CUDA and bf16 on the CPU.
        workers: processes that read data.
        sync_batchnorm: batch statistics over all processes.
        weights: a state dict to start from, such as that of torchvision's ResNet-18.
    """

    data: Path
    out: Path
    resume: bool = False
    iterations: int | None = None
    amp: str | None = None
    device: str = "cpu"
    workers: int = 0
    sync_batchnorm: bool = False
    weights: Path | None = None


@dataclass(frozen=True)
class Precision:
    """Mixed precision, or none."""

    name: str
    device: torch.device

    @classmethod
    def of(cls, preset: Preset, options: Options, device: torch.device) -> Precision:
        default = ("fp16" if device.type == "cuda" else "bf16") if preset.amp else "no"
        precision = cls(options.amp or default, device)
        if precision.name == "fp16" and device.type != "cuda":
            raise snn_ext.OptionError("fp16 needs CUDA.", do="use --amp bf16 or --amp no on the CPU")
        return precision

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(
            self.device.type, _DTYPES.get(self.name, torch.bfloat16), enabled=self.name != "no"
        )

    def scaler(self) -> torch.amp.GradScaler:
        """Scales losses where gradients could vanish, in fp16; else it passes everything on."""
        return torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")


def train(name: str, preset: Preset, options: Options) -> Place:
    """Train a preset, from the start or from a checkpoint; returns how far it came.

    Raises:
        OptionError: the data, the weights or an option do not fit.
        CheckpointError: nothing to resume, or something that would be overwritten.
    """
    with processes(options.device) as group:
        if not options.resume and (options.out / checkpoint.FILE).exists():
            raise snn_ext.CheckpointError(
                f"{options.out} holds a run already.", do="go on with it by --resume, or name another --out"
            )
        torch.manual_seed(preset.seed)
        with group.lead_first():
            split = load(preset, options.data)
        training = Training(name, preset, options, split, group)
        try:
            training.run()
        finally:
            training.log.close()
        return training.place


class Training:
    """A run: what it consists of, and its loop."""

    def __init__(self, name: str, preset: Preset, options: Options, split: Split, group: Processes) -> None:
        self.preset, self.options, self.split, self.group = preset, options, split, group
        self.precision = Precision.of(preset, options, group.device)
        self.batches = TrainingBatches(len(split.train), preset.batch, group, preset.seed)
        self.model = prepared(preset, split, options).to(group.device)
        self.crit = snn_ext.loss(self.model, preset.objective)
        optimiser = make_optimiser(self.model, preset)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, preset.schedule.factor)
        self.parts = Parts(self.model, optimiser, schedule, self.precision.scaler())
        self.wrapped = group.wrapped(self.model)
        self.identity = {
            "preset": name,
            "seed": preset.seed,
            "epochs": preset.schedule.epochs,
            "batch": preset.batch,
            "steps": preset.steps,
            "processes": group.world,
            "amp": self.precision.name,
            "sync_batchnorm": options.sync_batchnorm,
            "split": split.digest,
        }
        torch.manual_seed(preset.seed + group.rank)  # dropout and spikes differ between processes
        self.place = Place()
        if options.resume:
            self.place = checkpoint.read(options.out, self.identity, self.parts, group)
        options.out.mkdir(parents=True, exist_ok=True)
        self.log = Log(options.out, self.place) if group.lead else Silence()

    def run(self) -> None:
        """Learn until all epochs, or `iterations` batches, are done."""
        self.log.start(self.place, self.settings(), str(snn_ext.report(self.model)))
        while self.place.epoch < self.preset.schedule.epochs and not self.enough():
            self.learn()
            if self.place.position == len(self.batches):
                self.place.epoch, self.place.position = self.place.epoch + 1, 0
                self.parts.schedule.step()
            accuracy = self.test()
            if self.place.position == 0:
                self.place.best = max(self.place.best, accuracy)
            self.log.test(self.place, accuracy)
            self.save()

    def enough(self) -> bool:
        return self.options.iterations is not None and self.place.iteration >= self.options.iterations

    def learn(self) -> None:
        """The rest of an epoch, or what is left of it to do."""
        self.model.train()
        self.batches.epoch, self.batches.start = self.place.epoch, self.place.position
        for images, labels in self.loader(self.split.train, self.batches):
            loss = self.group.sum(self.step(images, labels)) / self.group.world
            self.place.position += 1
            self.place.iteration += 1
            lr = self.parts.optimiser.param_groups[0]["lr"]
            self.log.batch(self.place, loss.item(), lr, len(self.batches))
            if self.enough():
                return
            if self.place.iteration % SAVE_EVERY == 0:
                self.save()

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """One batch; returns its loss in this process."""
        optimiser, scaler = self.parts.optimiser, self.parts.scaler
        loss = self.crit(self.scores(self.wrapped, images), labels.to(self.group.device))
        optimiser.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        return loss.detach()

    def scores(self, model: nn.Module, images: Tensor) -> Tensor:
        """What the network says about a batch, in float32: [T, B, classes]."""
        snn_ext.reset(self.model)
        with self.precision.autocast():
            output: Tensor = model(sequence(self.preset, images.to(self.group.device)))
        return output.float()

    @torch.no_grad()
    def test(self) -> float:
        """Test accuracy in percent, by the readout of the objective; leaves all random generators alone."""
        self.model.eval()
        self.group.same_buffers(self.model)
        cuda = [self.group.device] if self.group.device.type == "cuda" else []
        right = torch.zeros((), dtype=torch.int64, device=self.group.device)
        batches = TestBatches(len(self.split.test), self.preset.batch, self.group)
        with torch.random.fork_rng(cuda):
            torch.manual_seed(self.preset.seed)  # where images are coded at random
            for images, labels in self.loader(self.split.test, batches):
                scores = self.crit.predict(self.scores(self.model, images))
                right += (scores.argmax(1) == labels.to(self.group.device)).sum()
        return 100 * int(self.group.sum(right)) / len(self.split.test)

    def loader(self, samples: Any, batches: Sampler[Any]) -> DataLoader[Any]:
        return DataLoader(
            samples,
            batch_sampler=batches,
            num_workers=self.options.workers,
            pin_memory=self.group.device.type == "cuda",
            generator=torch.Generator(),  # else every loader would draw from the one that the network uses
        )

    def save(self) -> None:
        """The checkpoint; after an epoch also the model, with what it takes to patch a fresh one."""
        checkpoint.write(self.options.out, self.identity, self.place, self.parts, self.group)
        if self.group.lead and self.place.position == 0:
            snn_ext.save(self.model, self.options.out / "model.safetensors")

    def settings(self) -> dict[str, Any]:
        """What the log says at the start."""
        parameters = sum(p.numel() for p in self.model.parameters())
        samples = {"train": len(self.split.train), "test": len(self.split.test)}
        return {
            **self.identity,
            "settings": repr(self.preset),
            "samples": samples,
            "classes": len(self.split.classes),
            "parameters": parameters,
            "device": str(self.group.device),
            "threads": torch.get_num_threads(),
        }


def prepared(preset: Preset, split: Split, options: Options) -> nn.Module:
    """The preset's network with its methods, and with `weights` in it."""
    model = build(preset, len(split.classes))
    if options.weights is not None:
        load_weights(model, options.weights)
    image, _ = split.test[(0, 0)]
    example = sequence(preset, torch.stack([image, image]))  # batch norms do not train on one
    snn_ext.patch(model, **preset.methods, timesteps=preset.steps, example_input=example)
    return snn_ext.convert_sync_batchnorm(model) if options.sync_batchnorm else model


def load_weights(model: nn.Module, path: Path) -> None:
    """Everything in a state dict that has the name and shape of something in the model.

    Raises:
        OptionError: it cannot be read, or nothing fits.
    """
    own = model.state_dict()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    except (RuntimeError, OSError, EOFError, AttributeError) as error:
        raise snn_ext.OptionError(
            f"{path} is not a state dict.",
            why=str(error),
            do="save it by torch.save(model.state_dict(), path)",
        ) from error
    if not fitting:
        raise snn_ext.OptionError(
            f"nothing in {path} fits the network.",
            why=f"it holds {', '.join(list(state)[:3])}; the network has {', '.join(list(own)[:3])}",
            do="use weights of the same architecture",
        )
    model.load_state_dict(fitting, strict=False)


def make_optimiser(model: nn.Module, preset: Preset) -> torch.optim.Optimizer:
    """SGD over the groups of snn-ext: V0 never decays, norms only where the authors' do."""
    spec = preset.optimiser
    groups = snn_ext.param_groups(model, lr=spec.lr, weight_decay=spec.weight_decay)
    if spec.decay_norms:  # no preset has this and V0
        groups = [{"params": list(model.parameters()), "weight_decay": spec.weight_decay}]
    optimiser = torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum)
    snn_ext.check_optimizer(model, optimiser)
    return optimiser
