"""Times `fit` beside a loop like those of the published scripts, and beside forward, backward and optimizer alone.

    python benchmarks/fit.py bundled          the bundled model, with its default config
    python benchmarks/fit.py sd15             a random model of SD 1.5's size, with the config of the webtoon study
    python benchmarks/fit.py switches         the bundled model, each switch that saves memory or time, on or off
    python benchmarks/fit.py start            from the command to the first step, with and without what was cached,
                                              and what a grid and a measurement take

Each loop runs in a process of its own. They take turns, so that whatever else the machine does falls on all alike:
read the ratios. Memory is the peak of the process, on a GPU that of the device. `sd15` takes 22 GB of memory, 20 GB of
disk and most of an hour on two cores. `switches` also prints what `plan` predicts for training at SD 1.5's size and
512 px, in the number format of this machine.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import sd15_size
import torch
from tqdm import tqdm

from lightning_dreambooth.cli.main import build_job
from lightning_dreambooth.planning.phases import predict

ROOT = Path(__file__).parent.parent
LONG = 1_000_000  # more steps than are made
# Nothing but training, as far as `fit` allows: one small grid is drawn before the first step.
ONLY_TRAINING = {
    "trainer.max_steps": LONG, "samples.every_n_steps": LONG, "samples.num_images": 1, "samples.steps": 1,
    "samples.prompts": "[a photo]", "fidelity.clip_model": "null", "fidelity.clip_pretrained": "null",
    "fidelity.dino": "null", "fidelity.prompts": "null", "fidelity.unrelated_prompts": "null",
    "fidelity.losses_every_n_steps": "null", "checkpoint.every_n_steps": LONG, "trainer.enable_progress_bar": False,
}  # fmt: skip
FUSED = '{"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-6, "fused": true}}'

EIGHT_BIT = "--model.optimizer=bitsandbytes.optim.AdamW8bit"
RATE = "--model.optimizer.lr=1e-4"
SWITCHES = {
    "AdamW, fused": [f"--model.optimizer={FUSED}"],
    "AdamW, not fused": [f"--model.optimizer={FUSED.replace('true', 'false')}"],
    "AdamW8bit": [EIGHT_BIT, RATE],
    "gradient checkpointing": ["--model.gradient_checkpointing=true"],
    "update in backward": ["--model.update_in_backward=true", "--trainer.gradient_clip_val=null"],
    "latents not cached": ["--data.cache_latents=false"],
    "text encoder frozen": ["--model.train_text_encoder=false"],
    "no prior": ["--model.prior_weight=0"],
    "adapters (LoRA, rank 8)": ["--model.lora.rank=8", RATE],
    "low_memory.yaml": [f"--config={ROOT / 'configs/low_memory.yaml'}"],
}


class Loop(NamedTuple):
    """A loop: its kind and settings, as `worker.py` takes them, and the tree of the package that it runs."""

    words: list[str]
    tree: Path = ROOT


def flags(settings: dict[str, Any]) -> list[str]:
    """Settings as a command line has them."""
    return [f"--{key}={value}" for key, value in settings.items()]


def bundled() -> dict[str, Loop]:
    """Loops of the bundled model, by name."""
    argv = [f"--config={ROOT / 'configs/toon.yaml'}", *flags(ONLY_TRAINING)]
    return {kind: Loop([kind, *argv]) for kind in ("plain", "ours", "bare")}


def sd15(folder: Path) -> dict[str, Loop]:
    """Loops of a model of SD 1.5's size, by name; with a frozen and with a trained text encoder."""
    made_up = {
        "model.pretrained": sd15_size.model(folder / "sd15"), "model.variant": "null", "model.vae": "null",
        "data.instance_data_dir": sd15_size.images(folder / "instance"), "data.num_class_images": 4,
        "data.class_data_dir": sd15_size.images(folder / "class"), "trainer.precision": "null",
    }  # fmt: skip
    layers = ("webtoon/sd15.yaml", "webtoon/subject.yaml")
    study = [f"--config={ROOT / 'configs' / layer}" for layer in layers] + flags(ONLY_TRAINING | made_up)
    fused = [f"--model.optimizer={FUSED}"]
    low, lora = ([f"--config={ROOT / 'configs' / layer}"] for layer in ("low_memory.yaml", "lora.yaml"))
    frozen = ["--model.train_text_encoder=false"]
    words = {
        "plain, text encoder frozen": ["plain", *study, *frozen],
        "ours, text encoder frozen": ["ours", *study, *frozen, *fused],
        "ours, low_memory.yaml": ["ours", *study, *low, *frozen],
        "ours, low_memory.yaml, fused AdamW": ["ours", *study, *low, *frozen, *fused],
        "ours, lora.yaml, weights in fp32": ["ours", *study, *lora, *frozen, "--model.weight_dtype=float32"],
        "plain, text encoder trained": ["plain", *study],
        "ours, text encoder trained": ["ours", *study, *fused],
    }
    return {name: Loop(given) for name, given in words.items()}


def switches() -> dict[str, Loop]:
    """Loops of the bundled model, each with one switch, by name."""
    argv = [f"--config={ROOT / 'configs/toon.yaml'}", *flags(ONLY_TRAINING)]
    return {name: Loop(["ours", *argv, *words]) for name, words in SWITCHES.items()}


def predicted(folder: Path) -> Iterator[str]:
    """What `plan` says of the memory of training at SD 1.5's size with each switch, as rows."""
    yield "| loop | GB of training at SD 1.5's size, predicted |"
    yield "|---|---|"
    study = sd15(folder)["ours, text encoder trained"].words[1:]
    for name, words in SWITCHES.items():
        training = predict(build_job([*study, "--model.gradient_checkpointing=false", *words])).phases[1]
        yield f"| {name} | {training.peak / 1e9:.1f} |"


@contextmanager
def started(loop: Loop, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A loop in a process of its own, ready for its first step."""
    words = [sys.executable, str(Path(__file__).with_name("worker.py")), *loop.words]
    path = os.pathsep.join([str(loop.tree), str(Path(__file__).parent)])
    process = subprocess.Popen(
        words, cwd=folder, env=os.environ | {"PYTHONPATH": path}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        reported(process)
        yield process
    finally:
        process.stdin.close()  # type: ignore[union-attr]
        process.wait()


def reported(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a loop reports next."""
    line = process.stdout.readline()  # type: ignore[union-attr]
    if not line:
        raise SystemExit(f"a loop has ended: {' '.join(map(str, process.args))}")  # type: ignore[arg-type]
    return dict(json.loads(line))


def step(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Makes a loop take a step."""
    process.stdin.write("\n")  # type: ignore[union-attr]
    process.stdin.flush()  # type: ignore[union-attr]
    return reported(process)


def side_by_side(loops: dict[str, Loop], folder: Path, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Reports of the steps of each loop, all of them in memory at once; the first step of each is not counted."""
    with ExitStack() as stack:
        processes = {name: stack.enter_context(started(loop, folder)) for name, loop in loops.items()}
        for process in processes.values():
            step(process)
        turns = [{name: step(process) for name, process in processes.items()} for _ in tqdm(range(rounds))]
    return {name: [turn[name] for turn in turns] for name in loops}


def one_by_one(loops: dict[str, Loop], folder: Path, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """The same, with one loop in memory at a time, started anew in each of two turns."""
    reports: dict[str, list[dict[str, Any]]] = {name: [] for name in loops}
    for _turn in range(2):
        for name, loop in tqdm(loops.items()):
            with started(loop, folder) as process:
                step(process)
                for _ in range(rounds):
                    reports[name].append(step(process))
                    tqdm.write(f"{name}: {reports[name][-1]}", file=sys.stderr)  # an hour's work is not lost
    return reports


def table(reports: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """The reports as rows: times relative to the last plain loop above."""
    parts = list(dict.fromkeys(part for steps in reports.values() for one in steps for part in one["parts"]))
    yield f"| loop | seconds a step | fastest, slowest | times as fast | peak GB | {' | '.join(parts)} |"
    yield "|---" * (5 + len(parts)) + "|"
    plain = 0.0  # of the last plain loop above, else of the first loop
    for name, steps in reports.items():
        seconds = [sum(one["parts"].values()) for one in steps]
        median = statistics.median(seconds)
        plain = median if name.startswith("plain") or not plain else plain
        spent = [f"{statistics.median(one['parts'].get(part, 0.0) for one in steps):.3f}" for part in parts]
        peak = max(one["peak_gb"] for one in steps)
        yield (
            f"| {name} | {median:.3f} | {min(seconds):.3f}, {max(seconds):.3f} | {plain / median:.2f} | {peak:.2f} | "
            f"{' | '.join(spent)} |"
        )


def first_steps(folder: Path) -> Iterator[str]:
    """Seconds from the command to the end of the first step of the default config."""
    yield "| start | seconds |"
    yield "|---|---|"
    only_training = [f"--config={ROOT / 'configs/toon.yaml'}", *flags(ONLY_TRAINING)]
    for name, argv in {
        "first run, class images to draw": [],
        "second run": [],
        "second run, no measurement, a grid of one image": only_training,
    }.items():
        command = [sys.executable, "-m", "lightning_dreambooth", "fit", *argv, "--trainer.callbacks+=worker.FirstStep"]
        trusted = {"LIGHTNING_DREAMBOOTH_TRUST": "worker"}
        path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
        began = time.perf_counter()
        environment = os.environ | trusted | {"PYTHONPATH": path}
        subprocess.run(
            command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        yield f"| {name} | {time.perf_counter() - began:.1f} |"


def between_steps(folder: Path) -> Iterator[str]:
    """Seconds that a grid and a measurement of the default config take, each after a step."""
    yield ""
    yield "| between two steps | seconds |"
    yield "|---|---|"
    seldom = dict.fromkeys(("samples.every_n_steps", "fidelity.every_n_steps", "checkpoint.every_n_steps"), LONG)
    for name, often in {"a grid": "samples.every_n_steps", "a measurement": "fidelity.every_n_steps"}.items():
        settings = seldom | {often: 1, "trainer.max_steps": LONG, "fidelity.losses_every_n_steps": "null"}
        argv = [f"--config={ROOT / 'configs/toon.yaml'}", *flags(settings), "--trainer.enable_progress_bar=false"]
        with started(Loop(["ours", *argv]), folder) as process:
            step(process)
            yield f"| {name} | {step(process)['parts']['data']:.1f} |"


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["bundled", "sd15", "switches", "start"])
    parser.add_argument("--rounds", type=int, help="steps of each loop, for sd15 in each of two turns")
    given = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "checkpoints").symlink_to(ROOT / "checkpoints")
        if given.what == "bundled":
            lines = table(side_by_side(bundled(), folder, given.rounds or 20))
        elif given.what == "sd15":
            lines = table(one_by_one(sd15(folder), folder, given.rounds or 1))
        elif given.what == "switches":
            lines = chain(table(side_by_side(switches(), folder, given.rounds or 20)), predicted(folder))
        else:
            lines = chain(first_steps(folder), between_steps(folder))
        for line in lines:
            print(line)
    versions = f"torch {torch.__version__}, Python {platform.python_version()}, {torch.get_num_threads()} threads"
    print(f"{platform.processor() or platform.machine()}, {versions}")


if __name__ == "__main__":
    main()
