import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_dreambooth.cli.commands import DreamBoothCLI

Run = Callable[..., DreamBoothCLI]
Complaint = Callable[..., str]

NOT_FINITE = [".nan", ".inf", "-.inf", -1, -0.001]
VALUES = {
    "model.prior_weight": NOT_FINITE, "model.noise_offset": NOT_FINITE, "model.snr_gamma": [*NOT_FINITE, 0],
    "model.ema_decay": [*NOT_FINITE, 0, 1, 1.5], "model.text_encoder_lr": [*NOT_FINITE, 0],
    "model.text_encoder_stop_step": [-1, 0, 10**12, 1.5], "model.warmup_steps": [-1, 5, 10**12, 1.5],
    "model.lr_schedule": ["exponential", 3],
    "samples.guidance_scale": [*NOT_FINITE, 1e9], "fidelity.guidance_scale": [*NOT_FINITE, 1e9],
    "benchmark.guidance_scale": [*NOT_FINITE, 1e9], "data.class_guidance_scale": [*NOT_FINITE, 1e9],
    "samples.steps": [0, -1, 10**9, 1.5], "fidelity.steps": [0, -1, 10**9], "benchmark.steps": [0, -1, 10**9],
    "samples.seed": [-1, 2**32, 2**63, 10**30, 1.5], "fidelity.seed": [-1, 2**63], "benchmark.seed": [-1, 2**63],
    "seed_everything": [-1, 2**32, 2**63, 10**30, 1.5, "x"],
    "samples.every_n_steps": [0, -1], "fidelity.every_n_steps": [0, -1], "fidelity.losses_every_n_steps": [0, -1],
    "fidelity.num_images": [0, 1, -1], "checkpoint.every_n_steps": [0, -1], "checkpoint.keep_states": [0, -1],
    "checkpoint.keep_exports": [0, -1], "checkpoint.keep_best": [-1], "checkpoint.dtype": ["float8"],
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in VALUES.items() for value in values])
def test_a_value_out_of_its_bounds_ends_in_one_line_that_names_it(
    complaint: Complaint, here: Path, key: str, value: object
) -> None:
    before = sorted(here.rglob("*"))
    assert key.rpartition(".")[2] in complaint(**{key.replace(".", "__"): value, "model__pretrained": "nowhere"})
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("seed", ["true", "false"])
def test_a_run_has_a_number_as_its_seed(complaint: Complaint, seed: str) -> None:
    assert "seed" in complaint(seed_everything=seed)


NAMES = ["/tmp/elsewhere", "..", "../x", "a/../b", "", " /", ".", ".cache", "a//b", "a/", "a\nb", "a\tb", "a\x00b",
         "x" * 256, "é" * 130, "a/" + "x" * 300, "\udcff", "\x1b[2J"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_not_a_folder_in_runs_ends_in_one_line(complaint: Complaint, here: Path, name: str) -> None:
    before = sorted(here.parent.rglob("*"))
    assert "the run's name is" in complaint(name=name)
    assert sorted(here.parent.rglob("*")) == before


@pytest.mark.parametrize("name", ["../..", "a\nb", "x" * 300])
def test_a_subject_that_cannot_name_a_run_ends_in_one_line(complaint: Complaint, name: str) -> None:
    assert "the run's name is" in complaint("test", benchmark__subject=name)


OPTIMIZERS = {
    "torch.optim.AdamW": {"lr": [0, -1, ".nan", ".inf", "x", "[1]"], "betas": ["[0.9]", "[0.9, 1]", "[-1, 0.9]", "3"],
                          "eps": [-1, ".nan", ".inf"], "weight_decay": [-1, ".nan", ".inf", "x"], "amsgrad": ["x"],
                          "momentum": [0.9]},
    "torch.optim.Adam": {"lr": [0, -1], "betas": ["[2, 3]"], "capturable": ["true"]},
    "torch.optim.SGD": {"lr": [0, -1], "momentum": [-1, 1, 5, ".nan"], "nesterov": ["true"], "dampening": [".nan"]},
    "torch.optim.RMSprop": {"lr": [0, -1], "alpha": [-1, ".nan"], "eps": [-1], "momentum": [-1, 2]},
    "torch.optim.Adagrad": {"lr": [0, -1], "lr_decay": [-1]},
    "torch.optim.SparseAdam": {"lr": [1e-4]}, "torch.optim.LBFGS": {"lr": [1e-4]},
    "torch.optim.Optimizer": {"defaults": ["{}"]}, "torch.optim.Muon": {"lr": [1e-4]},
    "lightning_dreambooth.rounding.RoundingAdamW": {
        "lr": [0, -1, ".nan"], "betas": ["[1, 2]"], "eps": [-1], "weight_decay": [-1],
    },
    "bitsandbytes.optim.AdamW8bit": {"lr": [0, -1, ".nan"], "betas": ["[1, 2]"], "eps": [-1], "weight_decay": [-1]},
    "torch.optim.lr_scheduler.StepLR": {"step_size": [3]}, "torch.optim.swa_utils.AveragedModel": {"device": ["cpu"]},
}  # fmt: skip
ARGUMENTS = [
    (kind, name, value)
    for kind, arguments in OPTIMIZERS.items()
    for name, values in arguments.items()
    for value in values
]


@pytest.mark.parametrize(("kind", "name", "value"), ARGUMENTS)
def test_a_wrong_argument_of_an_optimizer_ends_in_one_line_before_a_model_is_loaded(
    complaint: Complaint, kind: str, name: str, value: object
) -> None:
    init_args = json.dumps({"lr": 1e-4} | {name: "@"}).replace('"@"', str(value))
    Path("mine.yaml").write_text(f"model: {{optimizer: {{class_path: {kind}, init_args: {init_args}}}}}\n")
    assert "nowhere" not in complaint("fit", "--config=mine.yaml", model__pretrained="nowhere")


def adamw(**arguments: object) -> dict[str, object]:
    values = {"lr": 1e-4} | arguments
    return {"model__optimizer": "torch.optim.AdamW"} | {f"model__optimizer__{k}": v for k, v in values.items()}


@pytest.mark.parametrize(
    ("argument", "value", "now"),
    [("lr", 1e-3, 1e-3), ("betas", "[0.5, 0.6]", (0.5, 0.6)), ("foreach", "true", True),
     *(pytest.param(*case, marks=pytest.mark.slow) for case in [
         ("weight_decay", 0.5, 0.5), ("eps", 1e-3, 1e-3), ("maximize", "true", True)])],
)  # fmt: skip
def test_an_argument_of_the_optimizer_given_on_resume_counts_and_the_change_is_said(
    run: Run, capsys: pytest.CaptureFixture[str], argument: str, value: object, now: object
) -> None:
    run(name="first", trainer__max_steps=2, **adamw())
    capsys.readouterr()
    resumed = run(name="first", ckpt_path="last", trainer__max_steps=3, **adamw(**{argument: value}))
    assert [group[argument] for group in resumed.trainer.optimizers[0].param_groups] == [now] * 2
    said = [line for line in capsys.readouterr().err.splitlines() if "differs from the state's" in line]
    assert len(said) == 1
    assert f"unet {argument} " in said[0]
    assert f"=> {now}" in said[0]


def test_a_resume_with_the_same_arguments_says_nothing(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run(name="first", trainer__max_steps=2, **adamw(betas="[0.8, 0.9]"))
    run(name="first", ckpt_path="last", trainer__max_steps=3, **adamw(betas="[0.8, 0.9]"))
    assert "differs" not in capsys.readouterr().err


def test_an_argument_that_the_state_has_nothing_for_is_refused(run: Run, complaint: Complaint) -> None:
    run(name="first", trainer__max_steps=2, **adamw())
    line = complaint(name="first", ckpt_path="last", trainer__max_steps=3, **adamw(amsgrad="true"))
    assert "the state holds no max_exp_avg_sq" in line
