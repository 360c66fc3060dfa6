"""Memory that `plan` predicts for a `fit` on a CPU, beside what the fit takes.

    python benchmarks/memory.py [--sd15 FOLDER] [--only NAME ...]

Every prediction and every fit runs in a process of its own, for two steps with few images, in an empty folder. What
counts is the growth of the peak of resident memory over what the process takes before the model is loaded. Without
--sd15, only the bundled model is tried; else FOLDER gets a random model of SD 1.5's size, 4.3 GB, unless it is there.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import sd15_size
from peak import resident_peak

from lightning_dreambooth.cli.main import build_job, main
from lightning_dreambooth.planning.phases import predict
from lightning_dreambooth.planning.work import Rates

ROOT = Path(__file__).parent.parent
SHORT = [
    "--trainer.max_steps=2", "--trainer.accelerator=cpu", "--trainer.precision=32",
    "--trainer.enable_progress_bar=false", "--data.class_data_dir=class", "--data.class_steps=1",
    "--samples.steps=1", "--fidelity.steps=1",
]  # fmt: skip
BUNDLED = ["-c", "configs/toon.yaml", "--data.num_class_images=32", *SHORT]
SMALL = [
    f"--data.instance_data_dir={ROOT}/checkpoints/images/sks_girl", "--data.instance_prompt=a photo of sks girl",
    "--data.class_prompt=a photo of a girl", "--data.num_class_images=1", "--data.num_instance_images=2",
    "--data.class_guidance_scale=1", "--samples.num_images=1", "--samples.prompts=[a photo of sks girl]",
    "--samples.guidance_scale=1", "--fidelity.losses_every_n_steps=null", *SHORT,
]  # fmt: skip
CHECKPOINTING, EIGHT_BIT = "--model.gradient_checkpointing=true", "--model.optimizer=bitsandbytes.optim.AdamW8bit"
CASES = {
    "bundled": BUNDLED,
    "bundled, UNet only": [*BUNDLED, "--model.train_text_encoder=false"],
    "bundled, batch 16": [*BUNDLED, "--data.batch_size=16"],
    "bundled, checkpointing": [*BUNDLED, CHECKPOINTING, "--samples.batch_size=4", "--fidelity.batch_size=4"],
    "bundled, LoRA": [*BUNDLED, "--model.lora.rank=8"],
    "SD 1.5, 256 px, LoRA": [*SMALL, "--data.resolution=256", "--model.lora.rank=8"],
    "SD 1.5, 256 px, 8-bit AdamW, checkpointing": [
        *SMALL, "--data.resolution=256", CHECKPOINTING, EIGHT_BIT, "--model.optimizer.lr=1e-6",
    ],
    "SD 1.5, 256 px, SGD, text encoder, batch 4": [
        *SMALL, "--data.resolution=256", "--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=1e-6",
        "--model.train_text_encoder=true", "--data.batch_size=4",
    ],
    "SD 1.5, 512 px, LoRA, checkpointing": [*SMALL, "--data.resolution=512", "--model.lora.rank=8", CHECKPOINTING],
    "SD 1.5, 512 px, SGD": [
        *SMALL, "--data.resolution=512", "--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=1e-6",
    ],
}  # fmt: skip


def predicted_mb(argv: list[str]) -> float:
    """What `plan` predicts for a fit, in MB."""
    prediction = predict(build_job(argv))
    rates = Rates(work for phase in prediction.phases for _, work in phase.work)
    return (prediction.fullest.peak + rates.kernel_bytes) / 1e6


def measured_mb(argv: list[str]) -> float:
    """What a fit adds to the peak of this process, in MB."""
    build_job(argv)
    before = resident_peak()
    main(["fit", *argv])
    return (resident_peak() - before) / 1e6


def in_own_process(kind: str, argv: list[str]) -> float:
    """Runs a prediction or a fit in a process and an empty folder of its own => MB."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("configs", "checkpoints"):
            (Path(folder) / name).symlink_to(ROOT / name)
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        words = [sys.executable, __file__, "--run", kind, *argv]
        done = subprocess.run(words, cwd=folder, env=environment, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def compare() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sd15", type=Path, help="folder of the random model of SD 1.5's size")
    parser.add_argument("--only", nargs="+", choices=CASES, default=[*CASES], metavar="NAME")
    given = parser.parse_args()
    if given.sd15 and not given.sd15.is_dir():
        sd15_size.model(given.sd15)
    print("| config | predicted MB | measured MB | difference |\n|---|---|---|---|")
    for case in given.only:
        argv = CASES[case]
        if case.startswith("SD 1.5"):
            if given.sd15 is None:
                continue
            argv = [*argv, f"--model.pretrained={given.sd15.absolute()}"]
        predicted, measured = in_own_process("predict", argv), in_own_process("measure", argv)
        print(f"| {case} | {predicted:.0f} | {measured:.0f} | {predicted / measured - 1:+.1%} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        print((predicted_mb if sys.argv[2] == "predict" else measured_mb)(sys.argv[3:]))
    else:
        compare()
