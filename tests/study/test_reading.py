from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from helpers.datasets import made_up_dataset

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.study.reading import Study, read_study

ROOT = Path(__file__).parent.parent.parent
STUDIES = sorted((ROOT / "configs" / "studies").glob("*.yaml"))

Read = Callable[..., Study]


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    """Reads a study file with the given content."""
    monkeypatch.chdir(tmp_path)
    for name in ("fit", "fit_a", "fit_b", "more"):
        Path(f"{name}.yaml").touch()

    def read(**content: object) -> Study:
        Path("mine.yaml").write_text(yaml.safe_dump({"config": "fit.yaml"} | content, sort_keys=False))
        return read_study(Path("mine.yaml"))

    return read


def test_a_study_without_variants_has_one_of_its_name(read: Read) -> None:
    assert list(read().variants) == ["mine"]


def test_every_combination_of_a_grid_is_a_variant(read: Read) -> None:
    grid = {"model.optimizer.init_args.lr": [1e-5, 1e-4], "data.num_instance_images": [4, 16]}
    variants = read(grid=grid, overrides={"data.flip": True}).variants
    assert list(variants) == [f"lr={lr},num_instance_images={n}" for lr in ("1.0e-05", "0.0001") for n in (4, 16)]
    assert variants["lr=0.0001,num_instance_images=4"].settings == {"lr": 1e-4, "num_instance_images": 4}
    words = variants["lr=0.0001,num_instance_images=4"].argv(7)
    assert words == [
        "--config=fit.yaml", "--data.flip=true", "--model.optimizer.init_args.lr=0.0001",
        "--data.num_instance_images=4", "--seed_everything=7",
    ]  # fmt: skip


def test_a_grid_multiplies_named_variants(read: Read) -> None:
    variants = read(variants={"a": {}, "b": {"model.prior_weight": 0}}, grid={"data.flip": [True, False]}).variants
    assert list(variants) == ["a,flip=true", "a,flip=false", "b,flip=true", "b,flip=false"]
    assert variants["b,flip=true"].overrides == {"model.prior_weight": 0, "data.flip": True}
    assert variants["b,flip=true"].settings == {"variant": "b", "flip": True}


def test_keys_of_a_grid_with_the_same_end_keep_their_whole_names(read: Read) -> None:
    assert list(read(grid={"samples.seed": [1], "fidelity.seed": [2]}).variants) == ["samples.seed=1,fidelity.seed=2"]


def test_texts_are_values_of_a_grid_too(read: Read) -> None:
    variants = read(grid={"data.instance_prompt": ["a photo of sks: girl", "zwx/girl"]}).variants
    assert list(variants) == ["instance_prompt=a-photo-of-sks-girl", "instance_prompt=zwx-girl"]
    prompts = [variant.settings["instance_prompt"] for variant in variants.values()]
    assert prompts == ["a photo of sks: girl", "zwx/girl"]
    with pytest.raises(InputError, match="two variants are called instance_prompt=a-b"):
        read(grid={"data.instance_prompt": ["a b", "a/b"]})


def test_keys_of_a_grid_that_are_axes_keep_their_whole_names(read: Read) -> None:
    study = read(grid={"fidelity.steps": [5, 6]}, figures={"one": {"prompt": "x", "steps": 3}})
    assert [dict(row.differs) for row in study.figures["one"].rows] == [{"fidelity.steps": 5}, {"fidelity.steps": 6}]


def test_an_empty_key_equals_an_absent_key(read: Read) -> None:
    assert read(findings=None, figures=None, grid=None, sampling=None).figures == {}


def test_the_config_may_depend_on_the_variant(read: Read) -> None:
    variants = read(config="fit_{variant}.yaml", variants={"a": {}, "b": {}}).variants
    assert [variant.configs for variant in variants.values()] == [["fit_a.yaml"], ["fit_b.yaml"]]


def test_a_study_takes_layers_which_come_in_order_and_before_all_values(read: Read) -> None:
    overrides = {"data.flip": True, "config": "fit_{variant}.yaml"}
    study = read(overrides=overrides, variants={"a": {}, "b": {"config": "more.yaml", "data.flip": False}})
    assert study.variants["a"].argv(7) == [
        "--config=fit.yaml", "--config=fit_a.yaml", "--data.flip=true", "--seed_everything=7",
    ]  # fmt: skip
    assert study.variants["b"].argv(7) == [
        "--config=fit.yaml", "--config=fit_b.yaml", "--config=more.yaml", "--data.flip=false", "--seed_everything=7",
    ]  # fmt: skip


def test_layers_are_values_of_a_grid_too(read: Read) -> None:
    variants = read(grid={"config": ["fit_a.yaml", "fit_b.yaml"]}).variants
    assert [variant.configs[1] for variant in variants.values()] == ["fit_a.yaml", "fit_b.yaml"]
    assert list(variants) == ["config=fit_a.yaml", "config=fit_b.yaml"]


def test_rows_are_every_combination_and_share_the_noise_of_their_columns(read: Read) -> None:
    figure = {"prompt": ["x", "y"], "guidance_scale": [4, 7.5], "negative_prompt": "ugly"}
    rows = read(figures={"one": figure}, sampling={"num_images": 3, "seed": 10, "steps": 9}).figures["one"].rows
    assert [dict(row.differs) for row in rows] == [
        {"prompt": prompt, "guidance_scale": scale} for prompt in ("x", "y") for scale in (4.0, 7.5)
    ]
    assert {tuple(request.seed for request in row.requests) for row in rows} == {(10, 11, 12)}
    settings = {request.settings for row in rows for request in row.requests}
    assert {(setting.negative_prompt, setting.steps) for setting in settings} == {("ugly", 9)}


def test_variants_are_an_axis_of_a_figure(read: Read) -> None:
    study = read(variants={"a": {}, "b": {}, "c": {}}, figures={"one": {"prompt": "x", "variants": ["c", "a"]}})
    assert [row.differs for row in study.figures["one"].rows] == [{"variant": "c"}, {"variant": "a"}]


def test_values_of_a_grid_are_axes_of_a_figure(read: Read) -> None:
    study = read(grid={"model.prior_weight": [0, 1], "data.flip": [True]}, figures={"one": {"prompt": "x"}})
    assert [row.differs for row in study.figures["one"].rows] == [{"prior_weight": 0}, {"prior_weight": 1}]


def test_seeds_are_an_axis_of_a_figure(read: Read) -> None:
    rows = read(figures={"one": {"prompt": "x", "seed": [0, 100], "num_images": 2}}).figures["one"].rows
    assert [list(row.seeds) for row in rows] == [[0, 1], [100, 101]]


def test_a_study_takes_absent_keys_from_the_study_it_extends(read: Read) -> None:
    Path("base.yaml").write_text(yaml.safe_dump({"config": "fit.yaml", "seeds": [1, 2], "title": "base"}))
    study = read(extends="base.yaml", title="mine")
    assert (study.name, study.spec.title, study.spec.seeds) == ("mine", "mine", [1, 2])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"confg": "fit.yaml"}, "confg"),
        ({"config": "nowhere.yaml"}, "config nowhere.yaml of variant mine is not a file here"),
        ({"variants": {"a": {"config": "nowhere.yaml"}}}, "config nowhere.yaml of variant a is not a file here"),
        ({"variants": {"a": {"config": ["fit.yaml"]}}}, "config ['fit.yaml'] of variant a is not a file here"),
        ({"seeds": []}, "seeds is [], must be one or more different numbers"),
        ({"seeds": [1, 1]}, "seeds is [1, 1], must be one or more different numbers"),
        ({"seeds": [1, -1]}, "must be one or more different numbers of 0 or more"),
        ({"overrides": {"seed_everything": 3}}, "seed_everything is given by seeds"),
        ({"grid": {"data.flip": []}}, "grid has no values for data.flip"),
        ({"variants": {True: {}}}, "the key True is not text in YAML"),
        ({"resources": {"cpus": 4}}, "resources has cpus; it takes num_cpus and num_gpus"),
        ({"seeds": "x"}, "seeds"),
        ({"variants": {"a b": {}}}, "'a b' cannot name a folder"),
        ({"figures": {"one": {"prompt": "x", "variants": ["z"]}}}, "names the variant 'z'; there are mine"),
        ({"figures": {"one": {"prompt": "x", "references": "z"}}}, "names the variant 'z'; there are mine"),
        ({"figures": {"../one": {"prompt": "x"}}}, "cannot name a folder"),
        ({"figures": {"one": {}}}, "figure one has no prompt"),
        ({"figures": {"one": {"prompt": "x", "colour": 1}}}, "colour"),
        ({"figures": {"one": {"prompt": "x", "steps": 0}}}, "figure one: steps is 0, must lie in 1 ... 998"),
        ({"figures": {"one": {"prompt": "x", "steps": []}}}, "figure one has no images"),
        ({"figures": {"one": {"prompt": "x", "num_images": 0}}}, "figure one has no images"),
        ({"figures": {"one": {"prompt": "x", "sampler": "lms"}}}, "lms"),
        ({"extends": "mine.yaml"}, "mine.yaml extends itself"),
        ({"extends": "nowhere.yaml"}, "nowhere.yaml is not a file"),
        ({"dreambench": {"folder": "nowhere"}}, "prompts_and_classes.txt does not exist"),
        ({"dreambench": {"folder": "."}, "variants": {"a": {}}}, "dreambench is given with variants or a grid"),
        ({"dreambench": {"folder": "."}, "grid": {"data.flip": [True]}}, "dreambench is given with variants or a grid"),
    ],
)
def test_a_bad_study_is_refused_in_one_line(read: Read, content: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as error:
        read(**content)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


FINDING = {"claim": "c", "figure": "one", "measure": "clip_t", "more": {"steps": 4}, "less": {"steps": 2}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"figure": "two"}, "names the figure 'two'; there are one"),
        ({"more": {"steps": 3}}, "no row of figure one has {'steps': 3}"),
        ({"less": {"colour": 3}}, "no row of figure one has {'colour': 3}"),
        ({"measure": "beauty"}, "beauty"),
        ({"measure": "quality"}, "give quality: {good: ..., bad: ...}"),
    ],
)
def test_a_bad_finding_is_refused_in_one_line(read: Read, change: dict[str, object], message: str) -> None:
    figures = {"one": {"prompt": "x", "steps": [2, 4]}}
    assert read(figures=figures, findings=[FINDING]).spec.findings
    with pytest.raises(InputError) as error:
        read(figures=figures, findings=[FINDING | change])
    assert message in str(error.value)


def test_every_subject_of_a_dataset_is_a_variant(read: Read) -> None:
    made_up_dataset(Path("set"))
    study = read(dreambench={"folder": "set", "identifier": "zwx"}, overrides={"data.identifier": "other"})
    assert study.variants["mug"].overrides == {
        "data.instance_prompt": "a photo of zwx cup", "data.instance_data_dir": "set/mug",
        "data.class_prompt": "a photo of a cup", "data.class_data_dir": "runs/.cache/class_images/mine/cup",
        "data.identifier": "zwx",
    }  # fmt: skip
    assert list(study.variants) == ["mug", "owl"]
    assert study.variants["owl"].overrides["data.class_prompt"] == "a photo of an owl"


@pytest.mark.parametrize("file", STUDIES, ids=lambda path: path.stem)
def test_shipped_studies_open_with_their_command(file: Path) -> None:
    assert file.read_text().startswith(f"# python -m lightning_dreambooth study configs/studies/{file.name}\n")
    if file.stem != "dreambench":  # its dataset is the user's
        assert read_study(Path("configs/studies") / file.name).variants
