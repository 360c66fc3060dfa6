import os
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.datasets import BY_FILE

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.inputs import expand, read_text

PATHS = [
    "data.instance_data_dir", "data.class_data_dir", "data.held_out_dir", "data.concepts_list", "data.cache_dir",
    "model.pretrained", "model.vae", "samples.prompts_file", "fidelity.clip_model", "fidelity.clip_pretrained",
    "fidelity.dino", "fidelity.lpips", "fidelity.base_dir", "fidelity.base", "benchmark.folder", "ckpt_path",
]  # fmt: skip


def test_a_home_and_variables_are_expanded_as_a_shell_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/kim")
    monkeypatch.setenv("DATA", "/disk")
    paths = ["~/dogs", "~", "$DATA/dogs", "${DATA}s/dogs", "a/$DATA", "dogs", "a~b", "CompVis/stable-diffusion-v1-4"]
    expanded = ["/home/kim/dogs", "/home/kim", "/disk/dogs", "/disks/dogs", "a//disk", *paths[5:]]
    assert [expand(path) for path in paths] == expanded


@pytest.mark.parametrize("key", PATHS)
def test_every_path_of_a_config_refuses_a_variable_that_is_not_set(
    complaint: Callable[..., str], key: str, small_clip: Path
) -> None:
    settings = {"data.concepts_list": BY_FILE, "fidelity.clip_pretrained": {"fidelity.clip_model": "ViT-B-32"},
                "fidelity.base": {"fidelity.clip_model": small_clip}}.get(key, {})  # fmt: skip
    line = complaint(**settings | {key: "$NOWHERE_AT_ALL/x"})
    assert "the variable $NOWHERE_AT_ALL, which is not set" in line


def test_every_path_of_a_run_is_expanded(
    run: Callable[..., object], here: Path, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(here))
    monkeypatch.setenv("MODELS", str(tiny_sd.parent))
    Path("prompts.txt").write_text("a girl\n")
    Path("concepts.json").write_text(
        '[{"instance_prompt": "sks girl", "instance_data_dir": "~/girl", "class_prompt": "girl",'
        ' "class_data_dir": "$HOME/drawn"}]'
    )
    run(
        **BY_FILE, model__pretrained=f"$MODELS/{tiny_sd.name}", model__vae=f"${{MODELS}}/{tiny_sd.name}",
        data__cache_dir="~/cache", samples__prompts_file="~/prompts.txt", trainer__max_steps=1,
    )  # fmt: skip
    assert {path.name for path in here.iterdir()} - {"runs"} == {
        "girl",
        "prompts.txt",
        "concepts.json",
        "drawn",
        "cache",
    } | {"concepts.json"}


@pytest.mark.parametrize("path", ["pipe", "/dev/zero", "folder"])
@pytest.mark.parametrize("key", ["data__concepts_list", "samples__prompts_file"])
def test_a_list_that_is_not_a_regular_file_is_refused(complaint: Callable[..., str], key: str, path: str) -> None:
    os.mkfifo("pipe")
    Path("folder").mkdir()
    settings = BY_FILE if "concepts" in key else {}
    assert path in complaint(**settings | {key: path})


def test_a_text_that_is_too_long_is_refused(here: Path) -> None:
    with Path("a.txt").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match=r"a\.txt is longer than 16,777,216 bytes"):
        read_text(Path("a.txt"))


@pytest.mark.parametrize("key", ["data__concepts_list", "samples__prompts_file"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_list_is_read_in_every_unicode_encoding_with_a_mark(
    run: Callable[..., object], key: str, encoding: str, here: Path
) -> None:
    concepts = '[{"instance_prompt": "소녀", "instance_data_dir": "girl"}]'
    Path("list").write_bytes((concepts if "concepts" in key else "소녀\n").encode(encoding))
    settings = BY_FILE if "concepts" in key else {}
    job = run(**settings | {key: "list", "trainer__max_steps": 1, "model__prior_weight": 0})
    prompts = [concept.instance_prompt for concept in job.datamodule.concepts]
    assert (prompts if "concepts" in key else job.job.callbacks.samples.prompts) == ["소녀"]


@pytest.mark.parametrize(
    "key", ["data__instance_prompt", "data__class_prompt", "data__class_negative_prompt", "samples__prompts",
            "samples__negative_prompt", "fidelity__negative_prompt", "benchmark__negative_prompt"],
)  # fmt: skip
def test_a_prompt_of_many_pages_is_refused_in_one_short_line(complaint: Callable[..., str], key: str) -> None:
    config = key.replace("__", ": {", 1) + ": " + "sks girl " * 2_000 + "}\n"
    Path("long.yaml").write_text(config)
    line = complaint("fit", "--config=long.yaml", **{key: None})
    assert "must have at most 10,000" in line
    assert len(line) < 300


COUNTS = ["data.num_class_images", "data.batch_size", "data.class_batch_size", "samples.num_images",
          "samples.batch_size", "fidelity.num_images", "benchmark.num_images"]  # fmt: skip


@pytest.mark.parametrize("key", COUNTS)
def test_a_count_without_bound_is_refused(complaint: Callable[..., str], key: str) -> None:
    assert f"{key} is 1000000000, must lie in 1 ... 100,000" in complaint(**{key: 10**9})
