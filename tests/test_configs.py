import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from diffusers import StableDiffusionPipeline
from helpers import tiny

from lightning_dreambooth.cli import arguments
from lightning_dreambooth.cli.job import Job
from lightning_dreambooth.cli.main import build_job, main
from lightning_dreambooth.diffusion.cost import TRAINING_ROW, unet_evaluations
from lightning_dreambooth.evaluation.fixed_noise_loss import IMAGES, STRATA
from lightning_dreambooth.study.reading import read_study

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
LAYERS = [  # what is given to `fit` together
    ["toon.yaml"],
    ["toon_two_concepts.yaml"],
    ["sd15.yaml"],
    ["sd15.yaml", "low_memory.yaml"],
    ["sd15.yaml", "lora.yaml"],
    ["webtoon/toon.yaml", "webtoon/subject.yaml"],
    ["webtoon/toon.yaml", "webtoon/style.yaml"],
    ["webtoon/sd15.yaml", "webtoon/subject.yaml"],
    ["webtoon/sd15.yaml", "webtoon/style.yaml"],
]
# Studies are read by tests/study/test_reading.py.
OF_FIT = sorted(set(CONFIGS.rglob("*.yaml")) - set((CONFIGS / "studies").glob("*.yaml")))


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SD 1.5's layout: VAE factor 8, weights also as fp16 variant."""
    folder = tiny.stable_diffusion(tmp_path_factory.mktemp("model") / "sd15", factor=8)
    for file in list(folder.rglob("*.safetensors")):
        shutil.copy(file, file.with_suffix(".fp16.safetensors"))
    return folder


def flags(files: list[str]) -> list[str]:
    return [f"--config={CONFIGS / file}" for file in files]


def named(files: list[str]) -> str:
    return "+".join(file.removesuffix(".yaml") for file in files)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:no score")  # random encoders see no difference between random images
@pytest.mark.parametrize("files", LAYERS, ids=named)
def test_every_config_trains_to_an_export(
    here: Path, tiny_sd: Path, sd15: Path, small_clip: Path, small_dino: Path, files: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    embedded = "sd15" not in files[0]
    words = flags(files)
    if files[0] == "webtoon/sd15.yaml":
        words.append(f"--model.vae={sd15 / 'vae'}")
    if files == ["toon_two_concepts.yaml"]:
        shutil.copytree(CONFIGS, here / "configs")
        for name in ("sks_girl", "sks_style"):
            tiny.images(here / "checkpoints/images" / name, 2)
    else:
        words.append("--data.instance_data_dir=girl")
    settings: dict[str, object] = {"fidelity.clip_model": small_clip, "fidelity.steps": 1}
    if not embedded:
        settings |= {"fidelity.clip_pretrained": "null", "fidelity.dino": small_dino}
    if files == ["toon.yaml"]:
        settings["data.held_out_dir"] = tiny.subject(here / "held_out", 2)
    settings |= {
        "model.pretrained": tiny_sd if embedded else sd15, "data.num_class_images": 2, "data.class_steps": 1,
        "data.resolution": 32, "samples.num_images": 1, "samples.steps": 1, "trainer.max_steps": 1,
        "trainer.accelerator": "cpu", "trainer.log_every_n_steps": 1, "trainer.enable_progress_bar": "false",
        "trainer.precision": "bf16-mixed",
    }  # fmt: skip
    words += [f"--{key}={value}" for key, value in settings.items()]
    monkeypatch.setattr("sys.argv", ["lightning_dreambooth", "fit", *words])
    finished = main()
    assert finished.folder == Path("runs", "-".join(Path(file).stem for file in files))
    export = finished.folder / "exports/step-000001"
    pipeline = StableDiffusionPipeline.from_pretrained(sd15 if "lora.yaml" in files else export)
    if "lora.yaml" in files:
        pipeline.load_lora_weights(export)
    assert pipeline.unet.config.sample_size == 8


def test_every_config_of_fit_is_among_those_that_train_here() -> None:
    assert {CONFIGS / file for files in LAYERS for file in files} == {*OF_FIT}


def test_the_table_of_configs_names_every_file() -> None:
    rows = re.findall(r"^\| `([^`]+)` \|", (CONFIGS / "README.md").read_text(), re.MULTILINE)
    assert sorted([*rows, "README.md"]) == sorted(
        str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*") if path.is_file()
    )


@pytest.mark.parametrize("path", OF_FIT, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_config_opens_with_a_command_that_reads_it(path: Path) -> None:
    command = path.read_text().splitlines()[0]
    assert command.startswith("# python -m lightning_dreambooth fit")
    layers = re.findall(r"-c configs/(\S+)", command) or [str(arguments.EXAMPLE.relative_to(CONFIGS))]
    assert layers in LAYERS
    assert str(path.relative_to(CONFIGS)) in layers


def leaves(values: object, at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Every value of nested mappings, and where it stands."""
    if not isinstance(values, dict):
        yield at, values
        return
    for key, value in values.items():
        yield from leaves(value, (*at, key))


OVERLAYS = {"low_memory.yaml", "lora.yaml"}  # they say what they choose, whatever the config under them may say


@pytest.mark.parametrize("files", [files for files in LAYERS if not OVERLAYS & {*files}], ids=named)
def test_no_config_restates_a_default(here: Path, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    contents = [yaml.safe_load((CONFIGS / file).read_text()) for file in files]
    optimizer = contents[0].get("model", {}).get("optimizer", {"class_path": "torch.optim.AdamW"})["class_path"]
    bare = {"model": {"optimizer": {"class_path": optimizer, "init_args": {"lr": 0}}}}
    (here / "bare.yaml").write_text(yaml.safe_dump(bare))
    with pytest.raises(SystemExit):
        main(["fit", "--config=bare.yaml", "--print_config"])
    defaults = dict(leaves(yaml.safe_load(capsys.readouterr().out)))
    stated = [leaf for content in contents for leaf in leaves(content) if leaf[0][-1] != "class_path"]
    assert stated
    assert [at for at, value in stated if defaults[at] == value] == []


def sd15_arguments() -> dict[str, list[str]]:
    """Everything that ships for Stable Diffusion 1.5, as the arguments after `fit`."""
    configs = {named(files): flags(files) for files in LAYERS if files[0] == "sd15.yaml"}
    study = read_study(Path("configs/studies/webtoon_sd15.yaml"))
    return configs | {name: variant.argv(0) for name, variant in study.variants.items()}


def test_measuring_costs_less_than_a_quarter_of_training(
    here: Path, sd15: Path, small_clip: Path, small_dino: Path
) -> None:
    (here / "configs").symlink_to(CONFIGS)
    settings = {
        "model.pretrained": sd15, "model.vae": sd15 / "vae", "data.instance_data_dir": "girl", "data.resolution": 32,
        "data.num_class_images": 2, "fidelity.clip_model": small_clip, "fidelity.clip_pretrained": "null",
        "fidelity.dino": small_dino, "trainer.accelerator": "cpu", "trainer.precision": "bf16-mixed",
    }  # fmt: skip
    local = [f"--{key}={value}" for key, value in settings.items()]
    shares = {name: measured_share(build_job([*words, *local])) for name, words in sd15_arguments().items()}
    assert len(shares) == 7
    assert {name: share for name, share in shares.items() if not 0 < share < 0.25} == {}


def measured_share(job: Job) -> float:
    """Cost of measuring in a run, relative to the cost of its training."""
    fidelity, data, steps = job.callbacks.fidelity, job.data, job.trainer.max_steps
    probes = fidelity.measurement.probes
    assert len(probes) >= 4
    images = unet_evaluations(probe.request for probe in probes) * (1 + steps // fidelity.every_n_steps)
    losses = STRATA * IMAGES * data.rows_per_sample * (1 + steps // fidelity.losses_every_n_steps)
    return (images + losses) / (steps * data.batch_size * data.rows_per_sample * TRAINING_ROW)
