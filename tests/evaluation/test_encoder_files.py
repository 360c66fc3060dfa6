"""Folders of encoders from strangers: nothing in them is run, and no pickle is read."""

import json
import pickle
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny
from PIL import Image

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.evaluation.encoders import Clip, Dino, Lpips

MARK = "code_of_a_stranger"
watched: list[str] | None = None


def record(event: str, args: tuple[Any, ...]) -> None:
    """Notes what runs or reads code of a stranger, or asks on stdin; an audit hook cannot be removed."""
    if watched is not None and (event == "builtins.input" or MARK in str(args) or event == "pickle.find_class"):
        watched.append(f"{event} {args}")


sys.addaudithook(record)


@pytest.fixture
def audited() -> Iterator[list[str]]:
    """Everything that `record` notes during a test."""
    global watched
    watched = []
    yield watched
    watched = None


def bomb(file: Path) -> None:
    """A pickle that writes `exploded` beside itself."""

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (file.with_name("exploded"),)

    file.write_bytes(pickle.dumps(Bomb()))


def rewrite(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    change(content)
    file.write_text(json.dumps(content))


def escaped(file: Path, key: str) -> None:
    """Writes a key so that no search in the text finds it."""
    file.write_text(
        file.read_text().replace(f'"{key}"', '"' + "".join(f"\\u{ord(letter):04x}" for letter in key) + '"')
    )


def open_everything(kind: type[Clip] | type[Dino], folder: Path) -> None:
    encoder = kind(str(folder))
    encoder.check()
    encoder.images([Image.new("RGB", (32, 32))])
    if isinstance(encoder, Clip):
        encoder.texts(["a girl"])


AUTO_MAP = {"AutoTokenizer": [f"{MARK}.Tokenizer", f"{MARK}.Tokenizer"], "AutoConfig": f"{MARK}.Config"}
REQUESTS = {
    "trust in the config": ("open_clip_config.json", lambda c: c["model_cfg"]["text_cfg"].update(
        tokenizer_kwargs={"trust_remote_code": True})),
    "trust at the top": ("open_clip_config.json", lambda c: c.update(trust_remote_code=True)),
    "trust in a list": ("open_clip_config.json", lambda c: c.update(deep=[[{"trust_remote_code": 1}]])),
    "trust in another file": ("extra.json", lambda c: c.update(trust_remote_code=True)),
    "auto_map of a tokenizer": ("tokenizer_config.json", lambda c: c.update(auto_map=AUTO_MAP)),
    "auto_map of a model": ("config.json", lambda c: c.update(auto_map=AUTO_MAP, model_type="nobody")),
    "attention of a model": ("config.json", lambda c: c.update(attn_implementation="owner/kernel")),
}  # fmt: skip


@pytest.mark.parametrize("is_escaped", [False, True])
@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_a_folder_that_requests_code_to_run_is_refused_however_it_is_written(
    tmp_path: Path, audited: list[str], request_: tuple[str, Callable[[Any], None]], is_escaped: bool
) -> None:
    folder = tiny.clip(tmp_path / "clip")
    (folder / f"{MARK}.py").write_text("raise SystemExit('this has run')")
    name, change = request_
    rewrite(folder / name, change)
    if is_escaped:
        for key in ("trust_remote_code", "auto_map", "attn_implementation"):
            escaped(folder / name, key)
    audited.clear()
    with pytest.raises(InputError, match="requests to run code"):
        open_everything(Clip, folder)
    assert audited == []


@pytest.mark.parametrize("place", ["tokenizer of a subfolder", "text model of a subfolder"])
def test_code_in_a_subfolder_is_neither_run_nor_asked_about(tmp_path: Path, audited: list[str], place: str) -> None:
    folder = tiny.clip(tmp_path / "clip")
    inner = folder / "inner"
    inner.mkdir()
    (inner / f"{MARK}.py").write_text("raise SystemExit('this has run')")
    rewrite(inner / "tokenizer_config.json", lambda c: c.update(auto_map=AUTO_MAP, tokenizer_class="Nobody"))
    rewrite(inner / "config.json", lambda c: c.update(auto_map=AUTO_MAP, model_type="nobody"))
    tokens = {"tokenizer_kwargs": {"subfolder": "inner"}}
    text = tokens if place.startswith("tokenizer") else {"hf_model_name": str(inner)}
    rewrite(folder / "open_clip_config.json", lambda c: c["model_cfg"]["text_cfg"].update(text))
    with pytest.raises(InputError, match="cannot be loaded as an encoder"):
        open_everything(Clip, folder)
    assert [event for event in audited if event.startswith(("builtins.input", "exec", "compile", "import"))] == []


def test_a_file_that_is_not_json_is_named(tmp_path: Path) -> None:
    folder = tiny.clip(tmp_path / "clip")
    (folder / "extra.json").write_text("{" * 100_000)
    with pytest.raises(InputError, match=r"extra\.json is not JSON"):
        Clip(str(folder))


FOLDERS = {"clip": (Clip, tiny.clip, "open_clip_model.safetensors"), "dino": (Dino, tiny.dino, "model.safetensors")}
PICKLES = [
    "open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth", "pytorch_model.bin", "pytorch_model.pth", "model.pth",
    "aaa.bin", "aaa.pth", "aaa.pth.tar",
]  # fmt: skip
DECOYS = ["aaa.safetensors", "zzz.safetensors", "model.safetensors", "open_clip_pytorch_model.safetensors"]


@pytest.mark.parametrize("kind", FOLDERS)
@pytest.mark.parametrize("name", PICKLES)
@pytest.mark.parametrize("decoy", [None, *DECOYS])
def test_a_pickle_is_never_read_whatever_safetensors_lie_beside_it(
    tmp_path: Path, audited: list[str], kind: str, name: str, decoy: str | None
) -> None:
    encoder, make, preferred = FOLDERS[kind]
    folder = make(tmp_path / kind)
    bomb(folder / name)
    if decoy != preferred:
        (folder / preferred).rename(folder / (decoy or "hidden"))
        with pytest.raises(InputError, match="pickled weights" if decoy else "weights in safetensors"):
            open_everything(encoder, folder)
    else:
        open_everything(encoder, folder)
    assert not (folder / "exploded").exists()
    assert not any(name in event for event in audited)


@pytest.mark.parametrize("kind", FOLDERS)
def test_pickles_beside_the_preferred_safetensors_do_no_harm(tmp_path: Path, audited: list[str], kind: str) -> None:
    encoder, make, _ = FOLDERS[kind]
    folder = make(tmp_path / kind)
    for name in PICKLES:
        bomb(folder / name)
    open_everything(encoder, folder)
    assert not (folder / "exploded").exists()
    assert audited == []


def test_the_audit_sees_a_pickle_that_is_read(tmp_path: Path, audited: list[str]) -> None:
    bomb(tmp_path / "weights.bin")
    pickle.loads((tmp_path / "weights.bin").read_bytes())
    assert (tmp_path / "exploded").exists()
    assert any(event.startswith("pickle.find_class") for event in audited)


def compressed(file: Path) -> None:
    """Packs an archive of torch again, compressed."""
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def damaged(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("change", [compressed, damaged])
def test_a_compressed_or_damaged_backbone_of_lpips_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    file = tmp_path / "alexnet.pth"
    torch.save({"weight": torch.zeros(1000)}, file)
    change(file)
    monkeypatch.setattr(torch, "load", pytest.fail)
    with pytest.raises(InputError, match=r"alexnet\.pth cannot be loaded as an encoder .*damaged or compressed"):
        Lpips(str(file)).check()


@pytest.mark.parametrize("is_of_old_torch", [False, True])
def test_a_backbone_of_lpips_is_read_as_any_torch_writes_it(tmp_path: Path, is_of_old_torch: bool) -> None:
    torch.save({}, tmp_path / "alexnet.pth", _use_new_zipfile_serialization=not is_of_old_torch)
    with pytest.raises(InputError, match=r"features\.0\.weight"):  # looked for in what was read
        Lpips(str(tmp_path / "alexnet.pth")).check()
