"""Prompts and images that are encoded once; cache entries are named by image content, crop, resolution and VAE."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor
from tqdm import tqdm

from lightning_dreambooth.data.images import READER_VERSION, View, crop, crop_box, read_image
from lightning_dreambooth.distributed import any_rank, exclusive_folder, gather_dict, of_first_rank, rank, shard
from lightning_dreambooth.errors import InputError, TrainingError
from lightning_dreambooth.files import replaced, sha256
from lightning_dreambooth.models.conditioning import Conditioning, on_cpu, unstack
from lightning_dreambooth.models.stable_diffusion import StableDiffusion
from lightning_dreambooth.sizes import Size

ENCODE_BATCH = 32  # prompts, or images of up to 64 px, encoded at once
ENCODE_PIXELS = ENCODE_BATCH * 64 * 64

Encode = Callable[[UInt8[Tensor, "rows 3 height width"]], Float[Tensor, "rows twice_c h w"]]


def images_at_once(resolution_px: int) -> int:
    """Side of square images => how many are encoded at once: no more pixels than a small model's, and at least one."""
    return max(1, min(ENCODE_BATCH, ENCODE_PIXELS // resolution_px**2))


def load_pixels(path: Path, view: View, size: Size) -> UInt8[Tensor, "3 height width"]:
    """The view of an image file in a size => bytes 0 ... 255."""
    return pil_to_tensor(crop(read_image(path), size, view))


def read_entry(file: Path) -> Tensor | None:
    """The tensor of a cache entry; None if it is missing, damaged, or not the entry of its name."""
    try:
        with safe_open(file, framework="pt") as opened:
            moments: Tensor = opened.get_tensor("moments").clone()  # not the mapped file, which may change
            digest = (opened.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return None
    return moments if digest == entry_digest(file, moments) else None


def entry_digest(file: Path, moments: Tensor) -> str:
    """SHA-256 of the name and the content of a cache entry, 64 hex digits."""
    return hashlib.sha256(file.name.encode() + moments.numpy().tobytes()).hexdigest()


@torch.no_grad()
def encode_prompts(model: StableDiffusion, prompts: Sequence[str], batch_size: int) -> dict[str, Conditioning]:
    """Prompts => conditioning of each, on the CPU."""
    parts = [prompts[start : start + batch_size] for start in range(0, len(prompts), batch_size)]
    encoded = [row for part in parts for row in unstack(on_cpu(model.embed(model.tokenize(part))))]
    return dict(zip(prompts, encoded, strict=True))


class LatentCache:
    """The VAE's posterior (mean and standard deviation, not one sample) of views of images.

    Args:
        encoder: Names the VAE's weights and the precision they encode in.
        resolution_px: Side of the encoded squares.
        folder: Folder of the entries, one file each; None keeps them in memory.
        sizes: Sizes of images that are not encoded as squares.
    """

    def __init__(
        self, encoder: str, resolution_px: int, folder: Path | None = None, sizes: Mapping[Path, Size] | None = None
    ) -> None:
        self.encoder = encoder
        self.resolution_px = resolution_px
        self.sizes = sizes or {}
        self.folder = folder
        self.memory: dict[str, Tensor] = {}
        self.contents: dict[Path, tuple[str, int, int]] = {}

    def size(self, path: Path) -> Size:
        """The size in which an image is encoded."""
        return self.sizes.get(path, self.resolution_px)

    def key(self, path: Path, view: View) -> str:
        """Name of an entry, by everything that decides it; views that cut the same square share one entry."""
        if path not in self.contents:
            self.contents[path] = (sha256(path), *read_image(path).size)
        content, width, height = self.contents[path]
        size = self.size(path)
        box = crop_box(width, height, view, size)
        decided_by = f"{content} {box} {view.flip} {size} {self.encoder} reader {READER_VERSION}"
        return hashlib.sha256(decided_by.encode()).hexdigest()[:32]

    def get(self, path: Path, view: View) -> Float[Tensor, "twice_c h w"]:
        """The posterior of one image, after `fill`.

        Raises:
            TrainingError: if its entry was damaged or removed since then.
        """
        key = self.key(path, view)
        if self.folder is None:
            return self.memory[key]
        moments = read_entry(self._file(key))
        if moments is None:
            raise TrainingError(f"{self._file(key)} was damaged or removed while it was used; --ckpt_path last resumes")
        return moments

    def fill(self, views: Iterable[tuple[Path, View]], encode: Encode, batch_size: int) -> None:
        """Encodes the missing entries, all processes together.

        Raises:
            InputError: if processes write to different disks.
        """
        by_key = {self.key(path, view): (path, view) for path, view in views}
        if self.folder is None:
            self._encode(by_key, encode, batch_size)
            self.memory = gather_dict(self.memory)
            return
        if any_rank(bool(self._missing(by_key))):
            with exclusive_folder(self.folder):
                self._encode(by_key, encode, batch_size)
        if absent := self._missing(by_key):
            raise InputError(f"{self._file(absent[0])} was written on another node; name a cache_dir that nodes share")

    def _encode(self, by_key: Mapping[str, tuple[Path, View]], encode: Encode, batch_size: int) -> None:
        missing = {*of_first_rank(self._missing(by_key))}
        by_size: dict[Size, list[str]] = {}
        for key, (path, _) in by_key.items():
            by_size.setdefault(self.size(path), []).append(key)
        # Batches of the whole list, as for images that are drawn: the last bit of an entry may depend on its batch.
        parts = [keys[start : start + batch_size] for keys in by_size.values()
                 for start in range(0, len(keys), batch_size)]  # fmt: skip
        local = shard([part for part in parts if missing.intersection(part)])
        silent = rank() > 0 or not local
        with tqdm(total=sum(map(len, local)), desc="encoding images", unit="image", disable=silent) as progress:
            for part in local:
                pixels = torch.stack([load_pixels(*by_key[key], self.size(by_key[key][0])) for key in part])
                for key, moments in zip(part, encode(pixels).cpu(), strict=True):
                    if key in missing:
                        self._put(key, moments.clone(memory_format=torch.contiguous_format))
                progress.update(len(part))

    def _file(self, key: str) -> Path:
        return Path(str(self.folder), f"{key}.safetensors")

    def _missing(self, keys: Iterable[str]) -> list[str]:
        if self.folder is None:
            return [key for key in keys if key not in self.memory]
        return [key for key in keys if read_entry(self._file(key)) is None]

    def _put(self, key: str, moments: Tensor) -> None:
        if self.folder is None:
            self.memory[key] = moments
            return
        with replaced(self._file(key)) as beside:
            save_file({"moments": moments}, beside, metadata={"sha256": entry_digest(self._file(key), moments)})
