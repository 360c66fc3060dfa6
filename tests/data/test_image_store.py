from pathlib import Path

import pytest

from lightning_dreambooth.data.image_store import ImageStore
from lightning_dreambooth.diffusion.requests import Request, SamplingSettings, requests_for
from lightning_dreambooth.models.stable_diffusion import StableDiffusion

SETTINGS = SamplingSettings("ugly", 6, 12.0, "ddim")
REQUESTS = requests_for(["a photo of a girl"], range(7), SETTINGS)


def fill(model: StableDiffusion, requests: list[Request], batch_size: int = 4) -> dict[str, bytes]:
    store = ImageStore(Path("store"), "model", 32, "32-true", batch_size)
    return {path.name: path.read_bytes() for path in store.fill(requests, lambda: model, "")}


@pytest.mark.parametrize("batch_size", [2, 3, 4])
@pytest.mark.parametrize("lost", [{0}, {3}, {1, 2}, {0, 5}, {2, 3, 4, 5}])
def test_stored_images_are_redrawn_to_the_last_bit(
    here: Path, model: StableDiffusion, batch_size: int, lost: set[int]
) -> None:
    before = fill(model, REQUESTS, batch_size)
    for number in lost:
        Path("store/model", [*before][number]).unlink()
    assert fill(model, REQUESTS, batch_size) == before


def test_another_list_of_requests_changes_no_image(here: Path, model: StableDiffusion) -> None:
    before = fill(model, REQUESTS)
    times = {path: path.stat().st_mtime_ns for path in Path("store/model").glob("*.png")}
    others = fill(model, [*requests_for(["pink hair"], range(3), SETTINGS), *REQUESTS[::2]])
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert {name: others[name] for name in others.keys() & before.keys()} == {
        name: before[name] for name in others.keys() & before.keys()
    }
    assert len(others.keys() & before.keys()) == 4
