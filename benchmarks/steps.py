"""What a training step of each variant of a study costs, side by side on this machine.

    python benchmarks/steps.py configs/studies/adapters.yaml [--rounds 10]

Steps take turns, so that whatever else the machine does falls on all variants alike: read the ratios. Memory is
measured in a process of its own for each variant: the growth of its peak over what it takes before the model is loaded.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from peak import resident_peak

from lightning_dreambooth.cli.job import Job
from lightning_dreambooth.cli.main import build_job
from lightning_dreambooth.study.cost import training_step
from lightning_dreambooth.study.reading import read_study

STEPS_FOR_MEMORY = 3


def prepared(job: Job) -> Job:
    """The job with its model loaded and its trained weights chosen."""
    job.module.setup("fit")
    job.module.to(job.trainer.strategy.root_device)
    return job


def seconds(jobs: dict[str, Job], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step of each variant, after one that is not counted."""
    steps = {name: training_step(prepared(job)) for name, job in jobs.items()}
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                times[name].append(time.perf_counter() - began)
    return times


def peak_mb(job: Job) -> float:
    """Growth of the peak memory of this process by the model and a few steps, in MB; on a GPU, the device's peak."""
    before = resident_peak()
    step = training_step(prepared(job))
    for _ in range(STEPS_FOR_MEMORY):
        step()
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return (resident_peak() - before) / 1e6


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--memory_of", help="measure the memory of this variant only")
    given = parser.parse_args()
    study = read_study(given.study)
    if given.memory_of:
        print(peak_mb(build_job(study.variants[given.memory_of].argv(study.spec.seeds[0]))))
        return
    jobs = {name: build_job(variant.argv(study.spec.seeds[0])) for name, variant in study.variants.items()}
    times = seconds(jobs, given.rounds)
    first = statistics.median(next(iter(times.values())))
    print("| variant | numbers trained | seconds a step (median) | relative | fastest, slowest | peak memory, MB |")
    print("|---|---|---|---|---|---|")
    for name, job in jobs.items():
        trained = sum(weight.numel() for named in job.module.trained.values() for weight in named.values())
        words = [sys.executable, __file__, str(given.study), "--memory_of", name]
        memory = float(subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        median, low, high = statistics.median(times[name]), min(times[name]), max(times[name])
        print(f"| {name} | {trained:,} | {median:.3f} | {median / first:.2f} | {low:.3f}, {high:.3f} | {memory:.0f} |")


if __name__ == "__main__":
    main()
