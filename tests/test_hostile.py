"""Broken and hostile files: no code of theirs runs, little memory is taken, and each ends in one line."""

import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from helpers.datasets import BY_FILE
from PIL import Image

MAX_MEMORY = 64 * 2**20  # bytes that a refusal may take beyond what the process had


class Payload:
    """Unpickled, it would leave a file behind."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch owned",)


@contextmanager
def little_memory() -> Iterator[None]:
    """Checks that the block raises the peak of resident memory only little."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = peak()
    yield
    assert peak() - before < MAX_MEMORY


def peak() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


# --- states -----------------------------------------------------------------------------------------------------------


def plain_state() -> dict[str, object]:
    progress = {"base_model": "0", "step": 1, "samples": 1}
    return {"global_step": 1, "state_dict": {}, "optimizer_states": [], "lr_schedulers": [], "loops": {},
            "DreamBoothData": progress}  # fmt: skip


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def zipped(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


def legacy_tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = pickle.dumps(Payload())
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def huge_tensor() -> bytes:
    """A small state that declares a tensor of a terabyte."""
    content = saved(plain_state() | {"state_dict": {"w": torch.zeros(7)}})
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in entries if name.endswith("data.pkl"))
    entries[name] = entries[name].replace(b"K\x07", b"\x8a\x05\x00\x00\x00\x00\x7f")
    return zipped(entries)


STATES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"not a state",
    "zeros": lambda: bytes(100_000),
    "truncated": lambda: saved(plain_state() | {"state_dict": {"w": torch.ones(1000)}})[:-700],
    "half": lambda: saved(plain_state() | {"state_dict": {"w": torch.ones(1000)}})[:2000],
    "pickle": lambda: pickle.dumps(Payload()),
    "pickle protocol 0": lambda: pickle.dumps(Payload(), protocol=0),
    "pickle in a state": lambda: saved(plain_state() | {"state_dict": {"w": Payload()}}),
    "pickle as a key": lambda: saved(plain_state() | {Payload(): 1}),
    "path in a state": lambda: saved(plain_state() | {"hyper_parameters": {"folder": Path("x")}}),
    "legacy tar": legacy_tar,
    "legacy pickle": lambda: pickle.dumps(0x1950A86A20F9469CFC6C) + pickle.dumps(1001) + pickle.dumps(Payload()),
    "instantiator": lambda: saved(plain_state() | {"hyper_parameters": {"_instantiator": "os.system"}}),
    "class path": lambda: saved(plain_state() | {"datamodule_hyper_parameters": {"_class_path": "os.system"}}),
    "a list": lambda: saved([1, 2, 3]),
    "a tensor": lambda: saved(torch.ones(3)),
    "no weights": lambda: saved({"global_step": 3}),
    "step is text": lambda: saved(plain_state() | {"global_step": "1"}),
    "weights are a list": lambda: saved(plain_state() | {"state_dict": []}),
    "another model": lambda: saved(plain_state()),
    "no place in the data": lambda: saved(plain_state() | {"DreamBoothData": {"base_model": "x", "step": 1}}),
    "zip without a state": lambda: zipped({"readme.txt": b"hello"}),
    "zip that leaves its folder": lambda: zipped({"../../owned": b"x", "../data.pkl": pickle.dumps(Payload())}),
    "zip bomb": lambda: zipped({"x/data.pkl": bytes(500_000_000), "x/version": b"3"}, zipfile.ZIP_DEFLATED),
    "terabyte": huge_tensor,
    "deep pickle": lambda: zipped({"x/data.pkl": b"(" * 300_000 + b".", "x/version": b"3", "x/byteorder": b"little"}),
}


@pytest.mark.parametrize("kind", STATES)
def test_a_hostile_state_ends_in_one_line_and_runs_no_code(complaint: Callable[..., str], kind: str) -> None:
    Path("hostile.ckpt").write_bytes(STATES[kind]())
    with little_memory():
        line = complaint(ckpt_path="hostile.ckpt")
    assert "hostile.ckpt" in line
    assert not Path("owned").exists()
    assert not Path("runs").exists()


@pytest.mark.parametrize("path", ["https://example.com/state.ckpt", "s3://bucket/state.ckpt", "/dev/zero", "girl"])
def test_a_state_that_is_not_a_local_file_is_refused(complaint: Callable[..., str], path: str) -> None:
    assert f"ckpt_path {path} is not a local file" in complaint(ckpt_path=path)


# --- models -----------------------------------------------------------------------------------------------------------


def header(content: object, length: int | None = None) -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


def tensor(start: int, end: int, dtype: str = "F32", shape: tuple[int, ...] = (1,)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


UNET = "unet/diffusion_pytorch_model.safetensors"
NESTED = "[" * 100_000 + "]" * 100_000

FILES: dict[str, tuple[str, bytes]] = {
    "weights: empty": (UNET, b""),
    "weights: header bomb": (UNET, struct.pack("<Q", 2**62) + b"{}"),
    "weights: header longer than the file": (UNET, header({}, 90_000_000)),
    "weights: header is not JSON": (UNET, struct.pack("<Q", 4) + b"{{{{"),
    "weights: header is deeply nested": (UNET, struct.pack("<Q", len(NESTED)) + NESTED.encode()),
    "weights: offsets overlap": (UNET, header({"a": tensor(0, 4), "b": tensor(2, 6)}) + bytes(6)),
    "weights: offsets beyond the end": (UNET, header({"a": tensor(0, 4_000_000_000, shape=(10**9,))}) + bytes(4)),
    "weights: shape overflows": (UNET, header({"a": tensor(0, 4, shape=(2**62, 2**62))}) + bytes(4)),
    "weights: unknown type": (UNET, header({"a": tensor(0, 4, dtype="X99")}) + bytes(4)),
    "weights: of nothing": (UNET, header({})),
    "weights: pickle": (UNET, pickle.dumps(Payload())),
    "weights: of the text encoder, cut": ("text_encoder/model.safetensors", header({"a": tensor(0, 4)}) + bytes(2)),
    "config: not JSON": ("unet/config.json", b"{"),
    "config: a list": ("unet/config.json", b"[1]"),
    "config: deeply nested": ("unet/config.json", NESTED.encode()),
    "config: not text": ("vae/config.json", b"\xff\xfe\x00"),
    "config: empty object": ("unet/config.json", b"{}"),
    "config: another width": ("unet/config.json", b'{"sample_size": 8, "block_out_channels": [64, 128]}'),
    "config: a size that is not a number": ("unet/config.json", b'{"sample_size": "eight"}'),
    "config: VAE without channels": ("vae/config.json", b'{"block_out_channels": []}'),
    "scheduler: unknown target": ("scheduler/scheduler_config.json", b'{"prediction_type": "sample"}'),
    "tokenizer: not JSON": ("tokenizer/tokenizer.json", b"{"),
    "tokenizer: config is a list": ("tokenizer/tokenizer_config.json", b"[]"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_hostile_model_ends_in_one_line_and_runs_no_code(
    complaint: Callable[..., str], tiny_sd: Path, kind: str
) -> None:
    shutil.copytree(tiny_sd, "hostile")
    name, content = FILES[kind]
    Path("hostile", name).write_bytes(content)
    with little_memory():
        line = complaint(model__pretrained="hostile", model__prior_weight=0)
    assert "hostile" in line
    assert not Path("owned").exists()


def test_weights_that_exist_only_as_pickles_are_not_loaded(complaint: Callable[..., str], tiny_sd: Path) -> None:
    shutil.copytree(tiny_sd, "hostile")
    Path("hostile", UNET).unlink()
    torch.save({"w": Payload()}, Path("hostile", UNET).with_suffix(".bin"))
    assert f"hostile lacks {UNET}" in complaint(model__pretrained="hostile")
    assert not Path("owned").exists()


def test_code_that_comes_with_a_model_is_not_run(run: Callable[..., object], tiny_sd: Path) -> None:
    shutil.copytree(tiny_sd, "hostile")
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        Path("hostile", part, "own.py").write_text("open('owned', 'w')\n")
        for file in Path("hostile", part).glob("*config.json"):
            code = {"auto_map": {"AutoModel": "own.Model", "AutoTokenizer": ["own.T", "own.T"]}}
            file.write_text(json.dumps(json.loads(file.read_text()) | code))
    index = json.loads(Path("hostile/model_index.json").read_text()) | {"_class_name": ["own", "Pipeline"]}
    Path("hostile/model_index.json").write_text(json.dumps(index))
    run(model__pretrained="hostile", trainer__max_steps=1)
    assert not Path("owned").exists()


# --- images ---------------------------------------------------------------------------------------------------------


def encoded(format_: str, size: tuple[int, int] = (40, 40), **options: object) -> bytes:
    file = io.BytesIO()
    Image.effect_noise(size, 80).convert("RGB").save(file, format_, **options)
    return file.getvalue()


def png(width: int, height: int, data: bytes = b"", extra: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    text = chunk(b"zTXt", b"a\0\0" + extra) if extra else b""
    return b"\x89PNG\r\n\x1a\n" + head + text + chunk(b"IDAT", data) + chunk(b"IEND", b"")


IMAGES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "empty": ("x.png", lambda: b""),
    "truncated PNG": ("x.png", lambda: encoded("PNG")[:-500]),
    "truncated JPEG": ("x.jpg", lambda: encoded("JPEG")[:-300]),
    "truncated WebP": ("x.webp", lambda: encoded("WEBP")[:-100]),
    "truncated GIF": ("x.gif", lambda: encoded("GIF")[:400]),
    "truncated TIFF": ("x.tif", lambda: encoded("TIFF")[:300]),
    "truncated BMP": ("x.bmp", lambda: encoded("BMP")[:100]),
    "PNG bomb": ("x.png", lambda: png(13_300, 13_300, zlib.compress(bytes(13_300 * 3 * 200)))),
    "PNG of four billion rows": ("x.png", lambda: png(1, 2**31 - 1)),
    "PNG whose text explodes": ("x.png", lambda: png(40, 40, b"", zlib.compress(bytes(200_000_000)))),
    "TIFF bomb": ("x.tif", lambda: b"II*\0\x08\0\0\0\x02\0\0\x01\x04\0\x01\0\0\0\x40\x42\x0f\0\x01\x01\x04\0\x01\0\0\0"
                                   b"\x40\x42\x0f\0\0\0\0\0"),
    "BMP of negative width": ("x.bmp", lambda: encoded("BMP")[:18] + struct.pack("<i", -40) + encoded("BMP")[22:]),
    "PostScript called PNG": ("x.png", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\nshowpage\n"),
    "PostScript called JPEG": ("x.jpg", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\nshowpage\n"),
    "SVG called PNG": ("x.png", lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    "web page called JPEG": ("x.jpg", lambda: b"<!doctype html><title>404</title>"),
    "pickle called PNG": ("x.png", lambda: pickle.dumps(Payload())),
    "zip called PNG": ("x.png", lambda: zipped({"a": b"b"})),
}  # fmt: skip


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("folder", ["girl", "class"])
def test_a_hostile_image_ends_in_one_line_and_runs_no_code(
    complaint: Callable[..., str], kind: str, folder: str
) -> None:
    Path(folder).mkdir(exist_ok=True)
    name, content = IMAGES[kind]
    Path(folder, name).write_bytes(content())
    with little_memory():
        line = complaint()
    assert f"{folder}/{name}" in line
    assert not Path("owned").exists()
    assert not Path("runs").exists()


@pytest.mark.parametrize("target", ["/etc/hostname", "../secret.png", "nowhere.png", "x.png"])
def test_a_link_out_of_the_folder_is_refused(complaint: Callable[..., str], target: str) -> None:
    Path("secret.png").write_bytes(encoded("PNG"))
    Path("girl/x.png").symlink_to(target)
    assert "girl/x.png" in complaint()


def test_a_caption_that_is_not_text_is_refused(complaint: Callable[..., str]) -> None:
    Path("girl/00.txt").write_bytes(b"\xff\xfd\x00\x01")
    assert "girl/00.txt is not text" in complaint()


# --- configs ----------------------------------------------------------------------------------------------------------

CONFIGS = {
    "code in YAML": "model: !!python/object/apply:os.system ['touch owned']\n",
    "code in a value": "seed_everything: !!python/object/new:os.system ['touch owned']\n",
    "a call for an optimizer": "model: {optimizer: {class_path: os.system, init_args: {command: touch owned}}}\n",
    "a call for a callback": "trainer: {callbacks: {class_path: os.system, init_args: {command: touch owned}}}\n",
    "a process for a callback": "trainer: {callbacks: [{class_path: subprocess.Popen, init_args: {args: [id]}}]}\n",
    "a call for a logger": "trainer: {logger: {class_path: os.system, init_args: {command: touch owned}}}\n",
    "a call for a profiler": "trainer: {profiler: {class_path: os.system, init_args: {command: touch owned}}}\n",
    "a call for a plugin": "trainer: {plugins: {class_path: os.system, init_args: {command: touch owned}}}\n",
    "not YAML": "model: {prior_weight: [1\n",
    "not a mapping": "- 1\n- 2\n",
    "not text": "\udcff\udcfe\x00\x01",
    "deeply nested": "model: " + "[" * 3000 + "]" * 3000,
    "a tab": "model:\n\tprior_weight: 1\n",
    "a misspelt key": "modle: {prior_weight: 1}\n",
    "a number that is not one": "model: {prior_weight: one}\n",
}  # fmt: skip


def write(name: str, text: str) -> None:
    """Writes a text in which lone surrogates stand for bytes that are not UTF-8."""
    Path(name).write_bytes(text.encode("utf-8", "surrogateescape"))


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_hostile_config_ends_in_one_line_and_runs_no_code(complaint: Callable[..., str], kind: str) -> None:
    write("hostile.yaml", CONFIGS[kind])
    with little_memory():
        complaint("fit", "--config=hostile.yaml")
    assert not Path("owned").exists()
    assert not Path("runs").exists()


LISTS = {
    "not JSON": "[{", "deeply nested": NESTED, "an object": "{}", "empty": "[]", "of numbers": "[1]",
    "an unknown key": '[{"instance_prompt": "a", "instance_data_dir": "girl", "run": "touch owned"}]',
    "a prompt that is not text": '[{"instance_prompt": 1, "instance_data_dir": "girl"}]',
    "no folder": '[{"instance_prompt": "a"}]',
    "not text": "\udcff\udcfe",
}  # fmt: skip


@pytest.mark.parametrize("kind", LISTS)
def test_a_hostile_concepts_list_is_refused_by_name(complaint: Callable[..., str], kind: str) -> None:
    write("hostile.json", LISTS[kind])
    assert "hostile.json" in complaint(**BY_FILE | {"data__concepts_list": "hostile.json"})


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"recipe": 1, "seeds": 2}', b"\xff\xfe", NESTED.encode()])
def test_a_hostile_manifest_of_class_images_is_refused_by_name(complaint: Callable[..., str], content: bytes) -> None:
    Path("class").mkdir()
    Path("class/class_images.json").write_bytes(content)
    assert "class/class_images.json is not a manifest" in complaint()


def test_a_prompts_file_that_is_not_text_is_refused(complaint: Callable[..., str]) -> None:
    Path("prompts.txt").write_bytes(b"\xff\xfe\x00")
    assert "prompts.txt is not text" in complaint("predict", samples__prompts_file="prompts.txt")
