import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from helpers import tiny
from helpers.datasets import BY_FILE
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision.transforms.functional import pil_to_tensor

from lightning_dreambooth.cli import arguments
from lightning_dreambooth.cli.commands import DreamBoothCLI
from lightning_dreambooth.cli.main import main
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.saving.runs import run_folder
from lightning_dreambooth.saving.states import find_state


def opened(path: str | Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
    return image


ROOT = Path(__file__).parent.parent.parent
Run = Callable[..., DreamBoothCLI]
Complaint = Callable[..., str]


def test_the_summary_names_every_output(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run(name="first")
    summary = capsys.readouterr().out.splitlines()[-1]
    assert summary.startswith("first: 4 steps in ")
    for place in (
        "runs/first/samples",
        "tensorboard --logdir runs",
        "runs/first/exports/step-000004",
    ):
        assert place in summary
    assert Path("runs/first/samples/step-000000.png").is_file()
    assert Path("runs/first/samples/step-000004.png").is_file()
    assert opened("runs/first/training_images.png").width > 32


def test_the_log_holds_curves_and_images(run: Run) -> None:
    run(name="first", samples__every_n_steps=2)
    log = EventAccumulator("runs/first").Reload()
    scalars, images = set(log.Tags()["scalars"]), log.Tags()["images"]
    parts = ("unet", "text_encoder")
    kinds = ("gradient_norm", "weight_change", "learning_rate")
    assert {f"watch/{kind}/{part}" for kind in kinds for part in parts} <= scalars
    assert "config/text_summary" in log.Tags()["tensors"]
    trained = {name for name in scalars if not name.startswith("val/")}
    assert len({tuple(event.step for event in log.Scalars(name)) for name in trained}) == 1
    assert [event.step for event in log.Scalars("val/loss/instance")] == [0, 4]
    losses = {"train/loss", "train/instance_loss", "train/prior_loss", "train/samples_per_second"}
    assert losses <= scalars
    assert [event.step for event in log.Images("samples")] == [0, 2, 4]
    assert "training images" in images
    total, instance, prior = (
        log.Scalars(f"train/{name}")[-1].value for name in ("loss", "instance_loss", "prior_loss")
    )
    assert total == pytest.approx(instance + prior, rel=1e-5)


def test_grids_of_a_run_share_their_noise_across_steps(run: Run) -> None:
    settings = {"model__optimizer": "torch.optim.SGD", "model__optimizer__lr": 1e-6, "samples__every_n_steps": 2}
    run(name="first", **settings)
    first, last = (pil_to_tensor(opened(f"runs/first/samples/step-00000{n}.png")).int() for n in (0, 4))
    assert (first - last).abs().max() <= 2


def test_only_the_newest_exports_and_states_are_kept(run: Run) -> None:
    run(name="first", checkpoint__every_n_steps=1, checkpoint__keep_exports=2, checkpoint__keep_states=3)
    assert sorted(path.name for path in Path("runs/first/exports").iterdir()) == ["step-000003", "step-000004"]
    states = sorted(path.name for path in Path("runs/first/states").iterdir())
    assert states == [f"step-00000{step}.ckpt" for step in (2, 3, 4)]


def test_an_export_has_a_card_of_its_training(run: Run) -> None:
    run(name="first")
    card = Path("runs/first/exports/step-000004/README.md").read_text()
    assert "`a photo of sks girl`: 5 instance images, with 3 class images of `a photo of a girl`" in card
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "diffusers"


def test_a_name_comes_from_the_config_and_is_never_used_twice(run: Run, here: Path) -> None:
    Path("mine.yaml").write_text("trainer: {max_steps: 1}\n")
    folders = [run("fit", "--config=mine.yaml").folder for _ in range(2)]
    assert folders == [Path("runs/mine"), Path("runs/mine-2")]


def test_runs_that_begin_at_the_same_moment_have_folders_of_their_own(here: Path) -> None:
    with ThreadPoolExecutor(16) as at_once:
        folders = list(at_once.map(lambda _: run_folder(None, "mine", None), range(16)))
    assert {folder.name for folder in folders} == {"mine", *(f"mine-{number}" for number in range(2, 17))}
    with ThreadPoolExecutor(16) as at_once:
        named = [at_once.submit(run_folder, "named", "mine", None) for _ in range(16)]
    assert sum(begun.exception() is None for begun in named) == 1


def test_a_name_in_use_is_refused_and_nothing_is_overwritten(run: Run, complaint: Complaint) -> None:
    run(name="first")
    before = {path: path.stat().st_mtime_ns for path in Path("runs/first").rglob("*")}
    assert "runs/first belongs to another run; choose another name, or add --ckpt_path last" in complaint(name="first")
    assert {path: path.stat().st_mtime_ns for path in Path("runs/first").rglob("*")} == before


def test_the_saved_config_runs_the_job_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run("fit", trainer__max_steps=2)
    monkeypatch.setattr("sys.argv", ["lightning_dreambooth", "fit", f"--config={first.folder / 'config.yaml'}"])
    again = main()
    assert again.folder == Path(f"{first.folder}-2")
    weights = [dict(run.model.model.unet.named_parameters()) for run in (first, again)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_config_is_saved_into_the_run_whatever_logs_it(run: Run) -> None:
    Path("config.yaml").write_text("mine")
    logger = {"trainer__logger": "helpers.probes.HereLogger"}  # as Weights & Biases', its folder is this one
    assert run(**logger).folder == Path("runs/dreambooth")
    assert "a photo of sks girl" in Path("runs/dreambooth/config.yaml").read_text()
    assert Path("config.yaml").read_text() == "mine"


@pytest.mark.slow
def test_the_command_line_takes_precedence_over_the_checkpoint(run: Run) -> None:
    run(name="first")
    resumed = run(name="first", ckpt_path="last", trainer__max_steps=5, model__prior_weight=0.25)
    assert resumed.model.prior_weight == 0.25
    assert resumed.trainer.global_step == 5
    rate = {"model__optimizer": "torch.optim.AdamW", "model__optimizer__lr": 1e-3}
    again = run(name="first", ckpt_path="last", trainer__max_steps=6, **rate)
    assert again.trainer.optimizers[0].param_groups[0]["lr"] == 1e-3


def test_predict_writes_the_images_that_plain_diffusers_draws(run: Run) -> None:
    export = run(name="first").folder / "exports/step-000004"
    shutil.rmtree("girl")
    folder = run(
        "predict", model__pretrained=export, samples__prompts="a photo of sks girl", samples__negative_prompt="ugly",
        samples__num_images=2, samples__steps=3, name="drawn", data__instance_data_dir=None, data__instance_prompt=None,
        data__class_data_dir=None, data__class_prompt=None,
    ).folder  # fmt: skip
    pipeline = StableDiffusionPipeline.from_pretrained(export)
    pipeline.set_progress_bar_config(disable=True)
    for seed in (0, 1):
        image = opened(folder / f"{seed:04d}-a-photo-of-sks-girl-seed{seed}.png")
        expected = pipeline(
            "a photo of sks girl", negative_prompt="ugly", num_inference_steps=3,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]  # fmt: skip
        assert (pil_to_tensor(image).int() - pil_to_tensor(expected).int()).abs().max() <= 1
        request = {"prompt": "a photo of sks girl", "negative_prompt": "ugly", "seed": str(seed), "steps": "3"}
        assert request.items() <= image.text.items()
    assert opened(folder / "grid.png").width > 2 * 32


def test_predict_draws_a_checkpoint_with_its_saved_config(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(name="first", checkpoint__dtype="float32")
    words = ["--samples.prompts=a boy", "--samples.num_images=1", "--name=drawn"]
    config = [f"--config={first.folder / 'config.yaml'}", f"--ckpt_path={first.folder / 'states/step-000004.ckpt'}"]
    monkeypatch.setattr("sys.argv", ["lightning_dreambooth", "predict", *config, *words])
    main()
    from_export = run("predict", name="again", model__pretrained=first.folder / "exports/step-000004",
                      samples__prompts="a boy")  # fmt: skip
    images = [pil_to_tensor(opened(Path("runs", name, "grid.png"))).int() for name in ("drawn", "again")]
    assert (images[0] - images[1]).abs().max() <= 1
    assert from_export.folder == Path("runs/again")


def test_predict_draws_the_last_state_of_the_named_run_into_a_folder_of_its_own(run: Run) -> None:
    first = run(name="first", trainer__max_steps=2, checkpoint__dtype="float32")
    before = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}
    asked = {"samples__prompts": "a boy", "name": "first", "ckpt_path": "last"}
    folders = [run("predict", **asked).folder for _ in range(2)]
    assert folders == [Path("runs/predict"), Path("runs/predict-2")]
    assert {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")} == before
    export = run("predict", samples__prompts="a boy", model__pretrained=first.folder / "exports/step-000002").folder
    images = [pil_to_tensor(opened(folder / "grid.png")).int() for folder in (*folders, export)]
    assert torch.equal(images[0], images[1])
    assert (images[0] - images[2]).abs().max() <= 1


def test_predict_reads_prompts_from_a_file(run: Run) -> None:
    Path("prompts.txt").write_text("a girl\n\na boy\n")
    folder = run("predict", samples__prompts_file="prompts.txt").folder
    assert [path.name for path in sorted(folder.glob("0*.png"))] == ["0000-a-girl-seed0.png", "0001-a-boy-seed0.png"]


def test_two_concepts_train_together(run: Run) -> None:
    tiny.images(Path("boy"), 3)
    Path("concepts.json").write_text(
        json.dumps(
            [
                {
                    "instance_prompt": f"sks {name}", "instance_data_dir": name,
                    "class_prompt": f"a {name}", "class_data_dir": f"c/{name}",
                }
                for name in ("girl", "boy")
            ]
        )
    )  # fmt: skip
    done = run(**BY_FILE)
    assert [len(list(Path("c", name).glob("*.png"))) for name in ("girl", "boy")] == [3, 3]
    assert len(done.datamodule.dataset.concepts) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data__instance_data_dir": "nowhere"}, "nowhere is not a folder"),
        ({"data__instance_prompt": None}, "nothing to learn"),
        ({"data__class_prompt": None}, "which the prior loss needs"),
        ({"data__resolution": 30}, "data.resolution is 30, must be a multiple of the VAE's factor 4"),
        ({"data__batch_size": 0}, "data.batch_size is 0, must lie in 1 ... 100,000"),
        ({"data__caption_dropout": 1.5}, "data.caption_dropout is 1.5, must lie in 0 ... 1"),
        ({"data__class_steps": 0}, "data.class_steps is 0, must lie in 1 ... 998"),
        ({"samples__steps": 2000}, "samples.steps is 2000, must lie in 1 ... 998"),
        ({"data__concepts_list": "concepts.json"}, "concepts_list and a concept by options are both given"),
        ({"model__prior_weight": -1}, "model.prior_weight is -1.0, must be 0 or more"),
        ({"model__pretrained": "no/such"}, "no/such is neither a local folder nor a model that the hub provides"),
        ({"model__prior_wieght": 1}, "prior_wieght"),
        ({"data__pretrained": "x"}, "data.pretrained"),
        ({"trainer__max_steps": None}, "trainer.max_steps must be 1 or more"),
        ({"trainer__max_steps": "1e3"}, 'Parser key "trainer.max_steps"'),
        ({"samples__sampler": "pndm"}, "samples.sampler"),
        ({"samples__prompts_file": "nowhere.txt"}, "samples.prompts_file nowhere.txt must be a file"),
        ({"samples__num_images": 0}, "samples.num_images is 0, must lie in 1 ... 100,000"),
        ({"checkpoint__keep_states": 0}, "checkpoint.keep_states is 0, must be 1 or more"),
        ({"config": "nowhere.yaml"}, "nowhere.yaml"),
        ({"ckpt_path": "nowhere.ckpt"}, "ckpt_path nowhere.ckpt is not a local file"),
    ],
)
def test_wrong_input_ends_in_one_line_and_changes_nothing(
    complaint: Complaint, here: Path, settings: dict[str, object], message: str
) -> None:
    before = sorted(here.rglob("*"))
    assert message in complaint(**settings)
    assert sorted(here.rglob("*")) == before


def test_predict_without_prompts_is_refused(complaint: Complaint) -> None:
    assert "nothing to draw: give samples.prompts" in complaint("predict")
    assert not Path("runs").exists()


def test_one_class_folder_for_two_class_prompts_is_refused(complaint: Complaint) -> None:
    concept = {"instance_prompt": "sks", "instance_data_dir": "girl", "class_data_dir": "class"}
    Path("concepts.json").write_text(json.dumps([concept | {"class_prompt": prompt} for prompt in ("a girl", "a boy")]))
    assert "class is class_data_dir of two class prompts" in complaint(**BY_FILE)


def test_a_typo_in_a_config_is_named(complaint: Complaint) -> None:
    Path("mine.yaml").write_text("model: {prior_wieght: 1}\n")
    assert "prior_wieght" in complaint("fit", "--config=mine.yaml")


def test_a_run_whose_name_only_begins_alike_is_not_resumed(run: Run) -> None:
    run(name="mine-3d", trainer__max_steps=2)
    assert find_state("last", None, "mine") is None
    assert find_state("last", "mine", "x") is None
    expected = Path("runs/mine-3d/states/step-000002.ckpt")
    assert find_state("last", None, "mine-3d") == find_state("last", "mine-3d", "x") == expected


def test_a_damaged_state_is_skipped_by_name(run: Run, capsys: pytest.CaptureFixture[str], complaint: Complaint) -> None:
    run(name="first", trainer__max_steps=3, checkpoint__every_n_steps=1)
    older, newer = (Path(f"runs/first/states/step-00000{step}.ckpt") for step in (2, 3))
    content = bytearray(newer.read_bytes())
    content[len(content) // 2] ^= 1
    newer.write_bytes(content)
    assert find_state("last", "first", "x") == older
    assert f"skipped {newer}: it is damaged" in capsys.readouterr().err
    older.write_bytes(b"")
    assert "no state of runs/first is undamaged" in complaint(name="first", ckpt_path="last")


def test_last_begins_a_run_that_has_saved_nothing_yet(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs/mine").mkdir(parents=True)  # killed while it drew class images
    assert run(name="mine", ckpt_path="last").trainer.global_step == 4
    assert "runs/mine has no state yet: it begins at step 0" in capsys.readouterr().err


@pytest.mark.slow
def test_the_config_saved_by_a_named_and_resumed_run_starts_anew(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run(name="first", trainer__max_steps=2)
    resumed = run(name="first", ckpt_path="last", trainer__max_steps=3)
    monkeypatch.setattr("sys.argv", ["lightning_dreambooth", "fit", f"--config={resumed.folder / 'config.yaml'}"])
    again = main()
    assert again.folder == Path("runs/first-2")
    assert again.trainer.global_step == 3


def test_a_run_that_ends_early_is_saved(run: Run) -> None:
    cli_ = run(name="first", trainer__limit_train_batches=3)
    assert Path("runs/first/exports/step-000003/model_index.json").is_file()
    assert torch.load(cli_.folder / "states/step-000003.ckpt", weights_only=True)["global_step"] == 3


@pytest.mark.parametrize("path", ["last", "nowhere.ckpt"])
def test_predict_from_a_state_that_is_not_there_is_refused(complaint: Complaint, path: str) -> None:
    assert "ckpt_path" in complaint("predict", ckpt_path=path, samples__prompts="a girl")


@pytest.mark.parametrize("option", ["--config=x.yaml", "-c", "--model.prior_weight=1", "--data.instance_prompt=x"])
def test_the_example_does_not_leak_into_a_run_that_names_its_own(option: str) -> None:
    assert arguments.with_example(["fit", option]) == ["fit", option]


@pytest.mark.parametrize("word", ["--trainer.max_steps=9", "--print_config"])
def test_fit_alone_learns_the_bundled_character(word: str) -> None:
    words = arguments.with_example(["fit", word])
    assert words[1:3] == ["--config", str(ROOT / "configs/toon.yaml")]
    assert arguments.with_example(["predict"]) == ["predict"]


def test_where_the_example_is_not_installed_one_line_asks_for_a_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "EXAMPLE", Path("nowhere/toon.yaml"))
    with pytest.raises(InputError, match=r"toon\.yaml is not installed here; give --config"):
        arguments.with_example(["fit"])
