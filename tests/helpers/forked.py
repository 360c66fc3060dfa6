"""The command line in separate processes, forked from one that has imported everything, so that they start at once."""

import multiprocessing
import os
import runpy
import socket
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path

WORDS = [
    "--model.pretrained=tiny", "--model.ema_decay=0.9",
    "--data.instance_data_dir=girl", "--data.instance_prompt=a photo of sks girl",
    "--data.class_data_dir=class", "--data.class_prompt=a photo of a girl",
    "--data.num_class_images=3", "--data.class_steps=2", "--data.cache_dir=cache",
    "--samples.steps=2", "--samples.num_images=1", "--samples.every_n_steps=2",
    "--trainer.max_steps=6", "--trainer.accelerator=cpu", "--trainer.precision=32",
    "--trainer.enable_progress_bar=False", "--trainer.log_every_n_steps=1", "--checkpoint.every_n_steps=1",
]  # fmt: skip

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["lightning_dreambooth.cli.main"])
PATIENCE = 120  # seconds; a run takes two


def start(folder: Path, words: list[str], environment: Mapping[str, str] = {}, output: str = "output") -> "Run":
    """Starts `python -m lightning_dreambooth <words>` in a folder; what it prints goes to a file there."""
    process = CONTEXT.Process(target=_main, args=(folder, words, dict(environment), output))
    process.start()
    return Run(process, folder / output)


def together(folder: Path, words: list[str], count: int = 2) -> "list[Run]":
    """Starts several processes that train together, as torchrun would."""
    common = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0",
        "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
    }  # fmt: skip
    words = [*words, f"--trainer.devices={count}", "--trainer.strategy=ddp"]
    return [start(folder, words, common | {"RANK": str(r), "LOCAL_RANK": str(r)}, f"output-{r}") for r in range(count)]


def on_two_ranks(function: Callable[[Path, int], None], folder: Path) -> list[int]:
    """Calls a function of a test with a folder and a rank, in two processes of one group; returns their exit codes."""
    port = _free_port()
    processes = [CONTEXT.Process(target=_in_group, args=(function, folder, rank, port)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def _in_group(function: Callable[[Path, int], None], folder: Path, rank: int, port: int) -> None:
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    function(folder, rank)
    torch.distributed.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Run:
    """A started process and what it prints."""

    def __init__(self, process: ForkServerProcess, output: Path) -> None:
        self.process = process
        self.output = output

    def send(self, number: int) -> None:
        """Sends a signal, if the process still runs."""
        if self.process.is_alive():
            os.kill(self.process.pid, number)

    def wait(self, patience_seconds: int = PATIENCE) -> int:
        """Waits for the end; returns the exit code, negative if a signal killed the process."""
        self.process.join(patience_seconds)
        hangs = self.process.is_alive()
        if hangs:
            self.process.kill()
            self.process.join()
        assert not hangs, self.printed()
        return self.process.exitcode

    def printed(self) -> str:
        """The output so far."""
        return self.output.read_text() if self.output.exists() else ""


def until(run: Run, condition: Callable[[], object], patience: float = 60.0) -> None:
    """Waits for a condition while a run is alive."""
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, run.printed()
        assert run.process.is_alive(), run.printed()
        time.sleep(0.01)


def _main(folder: Path, words: list[str], environment: dict[str, str], output: str) -> None:
    file = os.open(folder / output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(folder)
    quiet = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "JSONARGPARSE_DEPRECATION_WARNINGS": "off",
             "LIGHTNING_DREAMBOOTH_TRUST": "helpers"}  # fmt: skip
    os.environ |= quiet | environment
    here = Path(__file__).parent.parent
    os.environ["PYTHONPATH"] = f"{here}{os.pathsep}{here.parent}"  # for processes that this one starts
    import torch
    from pytorch_lightning.utilities import rank_zero_only

    torch.set_num_threads(1)
    rank_zero_only.rank = int(environment.get("RANK", 0))  # which Lightning reads when it is imported: too early here
    sys.argv = ["lightning_dreambooth", *words]
    runpy.run_module("lightning_dreambooth", run_name="__main__", alter_sys=True)
