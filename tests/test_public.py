"""The public names, and what the documentation says can be done with them in Python."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

import lightning_dreambooth
from lightning_dreambooth import DreamBooth, DreamBoothData
from lightning_dreambooth.callbacks.samples import Samples
from lightning_dreambooth.callbacks.validation import Fidelity

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = {
    f"{page.stem}-{number}": text
    for page in PAGES
    for number, text in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
}


def test_every_public_name_is_there_and_costs_nothing_before_it_is_used() -> None:
    assert all(hasattr(lightning_dreambooth, name) for name in lightning_dreambooth.__all__)
    code = "import sys, lightning_dreambooth; print({'torch', 'pytorch_lightning'} & {*sys.modules})"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "set()"


def test_the_documentation_has_an_example_of_about_ten_lines() -> None:
    assert any("from lightning_dreambooth import" in text for text in EXAMPLES.values())
    assert all(len(text.splitlines()) <= 15 for text in EXAMPLES.values())


@pytest.mark.parametrize("name", [name for name, text in EXAMPLES.items() if "from lightning_dreambooth" in text])
def test_the_examples_in_python_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[name], name, "exec"), {})
    drawn = [path for path in tmp_path.iterdir() if path.suffix == ".png"]
    assert drawn
    for path in drawn:
        assert len(Image.open(path).getcolors(100_000) or []) > 100  # not one colour


def test_module_and_data_train_under_a_trainer_of_ones_own(here: Path, tiny_sd: Path) -> None:
    module = DreamBooth(pretrained=str(tiny_sd), prior_weight=0.0)
    data = DreamBoothData("a photo of sks girl", "girl", training_setup=module.training_setup)
    trainer = pl.Trainer(
        default_root_dir=here / "mine", max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[Samples(num_images=1, steps=1)],
    )  # fmt: skip
    trainer.fit(module, data)
    assert max(float(change) for change in module.relative_changes().values()) > 0
    assert all(torch.isfinite(weight).all() for weight in module.model.parameters())
    assert sorted(path.name for path in (here / "mine/samples").iterdir()) == ["step-000000.png", "step-000002.png"]


def test_a_callback_measures_the_data_of_the_run_that_it_is_in(here: Path, tiny_sd: Path, small_clip: Path) -> None:
    setup = DreamBooth(pretrained=str(tiny_sd), prior_weight=0.0).training_setup
    fidelity = Fidelity(clip_model=str(small_clip))
    for prompt in ("a photo of sks girl", "a photo of sks boy"):
        fidelity.check(DreamBoothData(prompt, "girl", identifier="sks", training_setup=setup))
        assert {probe.request.prompt for probe in fidelity.measurement.probes} == {prompt}
