import inspect
import os
import pkgutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentError
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.accelerators import Accelerator
from pytorch_lightning.loggers import Logger
from pytorch_lightning.profilers import Profiler
from pytorch_lightning.strategies import Strategy
from torch.optim import Optimizer

from lightning_dreambooth.cli.arguments import add_sections
from lightning_dreambooth.cli.parser import TRUST, TRUSTED, ConfigParser, check_callables
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.study.reading import read_study

# Audit events of code that runs, files that are written, and connections.
ACTS = {"os.system", "subprocess.Popen", "os.posix_spawn", "os.exec", "os.fork", "shutil.rmtree", "os.remove",
        "os.mkdir", "socket.connect", "os.putenv", "os.chmod", "os.rename"}  # fmt: skip
seen: list[str] | None = None


def listen(event: str, arguments: tuple[Any, ...]) -> None:
    if seen is None:
        return
    writes = event == "open" and isinstance(arguments[1], str) and {*arguments[1]} & {*"wax+"}
    if event == "subprocess.Popen" and "json.dumps(sys.path)" in str(arguments):
        return  # jsonargparse looks for type stubs
    if event in ACTS or writes or (event == "import" and arguments[0] in ("mine", "this", "antigravity")):
        seen.append(f"{event} {arguments[:2]}")


sys.addaudithook(listen)  # cannot be removed; it does nothing while `seen` is None


@contextmanager
def nothing_runs() -> Iterator[None]:
    """Checks by the interpreter's audit events that no code runs, and no file is written."""
    global seen
    seen = []
    try:
        yield
    finally:
        found, seen = seen, None
    assert found == []


def call(path: str, /, **arguments: object) -> dict[str, object]:
    return {"class_path": path, "init_args": arguments}


HOSTILE = [
    "os.system", "posix.system", "builtins.eval", "builtins.exec", "functools.partial", "mine.Mine", "mine.act",
    "this.s", "antigravity.webbrowser", "subprocess.Popen", "importlib.import_module", "torch.load", "runpy.run_path",
    "torch.optim.optimizer.torch.from_file", "torch.optim.optimizer.torch.load", "torch.hub.load",
    "pytorch_lightning.cli.instantiate_class", "pytorch_lightning.callbacks.model_checkpoint.shutil.rmtree",
    "pytorch_lightning.Trainer", "jsonargparse.set_parsing_settings", "lightning_dreambooth.cli.main.main",
    call("os.system", command="touch owned"), call("posix.system", command="touch owned"),
    call("subprocess.Popen", args=["touch", "owned"]), call("builtins.open", file="owned", mode="w"),
    call("builtins.exec", source="open('owned', 'w')"), call("mine.Mine"), call("mine.act"),
    call("functools.partial", func="os.system"), call("pathlib.Path.touch"), call("shutil.rmtree", path="."),
    call("torch.optim.optimizer.torch.from_file", filename="owned", shared=True, size=4),
    call("torch.hub.load", repo_or_dir=".", model="mine", source="local"),
    call("pytorch_lightning.cli.instantiate_class", args=[], init=call("os.system", command="touch owned")),
    [call("os.system", command="touch owned")], {"x": call("os.system", command="touch owned")},
]  # fmt: skip
FEW = [
    call("os.system", command="touch owned"), "mine.Mine", "torch.optim.optimizer.torch.from_file", call("mine.act"),
    call("torch.optim.optimizer.torch.from_file", filename="owned", shared=True, size=4),
]  # fmt: skip


KINDS = {
    Optimizer: "model.optimizer", Callback: "trainer.callbacks", Logger: "trainer.logger", Profiler: "trainer.profiler",
    Strategy: "trainer.strategy", Accelerator: "trainer.accelerator", object: "trainer.plugins",
}  # fmt: skip


@pytest.fixture(scope="module")
def parser() -> ConfigParser:
    parser = ConfigParser(exit_on_error=False)
    parser.add_argument("--seed_everything", type=bool | int, default=0)
    add_sections(parser)
    parser.add_lightning_class_args(Trainer, "trainer")
    return parser


@pytest.fixture
def mine(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module in the working folder, which leaves a file behind when it is imported."""
    act = "open('owned', 'w')\ndef act(): open('owned', 'w')\nclass Mine:\n    def __init__(self): act()\n"
    Path("mine.py").write_text(act)
    monkeypatch.syspath_prepend(str(here))


def keys(parser: ConfigParser) -> list[str]:
    return [action.dest for action in parser._actions if action.dest not in ("help", "data.training_setup")]


def obey(parser: ConfigParser, content: dict[str, Any]) -> str | None:
    """Does with a config what the command line does before it runs; returns the complaint, None if there is none."""
    try:
        config = parser.parse_string(yaml.safe_dump(content))
        check_callables(config)
        parser.instantiate_classes(config)
    except (ArgumentError, InputError, TypeError, ValueError, ImportError) as error:
        return str(error) or "?"
    return None


def nested(key: str, value: object) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value  # type: ignore[return-value]


@pytest.mark.parametrize("specs", [FEW, pytest.param(HOSTILE, marks=pytest.mark.slow)], ids=["few", "all"])
def test_no_key_of_a_config_runs_code_or_writes_files(parser: ConfigParser, mine: None, specs: list[object]) -> None:
    with nothing_runs():
        tried = [obey(parser, nested(key, spec)) for key in keys(parser) for spec in specs]
    assert len(tried) > 100 * len(specs)
    assert not Path("owned").exists()
    assert "mine" not in sys.modules


@pytest.mark.parametrize("key", KINDS.values())
def test_no_key_that_takes_a_class_takes_other_code(parser: ConfigParser, mine: None, key: str) -> None:
    with nothing_runs():
        complaints = {str(spec): obey(parser, nested(key, spec)) for spec in HOSTILE}
    accepted = [spec for spec in HOSTILE if complaints[str(spec)] is None]
    # Keys of Lightning that take its own short names, such as `ddp`, leave other text to the Trainer, which refuses it.
    short_names = key in ("trainer.profiler", "trainer.strategy", "trainer.accelerator", "trainer.plugins")
    assert all(short_names and isinstance(spec, str) for spec in accepted)
    assert not Path("owned").exists()


def trusted_classes() -> list[type]:
    """Every class that a config may name."""
    classes = {}
    for root in (name for name in TRUSTED if not name.startswith("lightning_dreambooth")):
        package = import_module(root)
        names = [module.name for module in pkgutil.walk_packages(getattr(package, "__path__", []), f"{root}.")]
        for name in [root, *names]:
            try:
                module = import_module(name)
            except ImportError:
                continue
            for kind in vars(module).values():
                if inspect.isclass(kind) and kind.__module__.startswith(TRUSTED):
                    classes[f"{kind.__module__}.{kind.__qualname__}"] = kind
    return list(classes.values())


@pytest.mark.slow
def test_no_argument_of_a_class_that_a_config_may_name_runs_code_or_writes_files(
    parser: ConfigParser, mine: None
) -> None:
    specs, count = FEW[:3], 0
    for kind in trusted_classes():
        key = next(key for base, key in KINDS.items() if issubclass(kind, base))
        for name in parameters(kind):
            for spec in specs:
                content = nested(key, call(f"{kind.__module__}.{kind.__qualname__}", **{name: spec}))
                with nothing_runs():
                    obey(parser, content)
                count += 1
    assert count > 600 * len(specs)
    assert not Path("owned").exists()
    assert "mine" not in sys.modules


def parameters(kind: type) -> list[str]:
    try:
        return [*inspect.signature(kind).parameters]
    except ValueError:  # a builtin
        return []


@pytest.mark.parametrize("spec", HOSTILE, ids=str)
def test_a_study_file_runs_no_code(mine: None, spec: object) -> None:
    Path("fit.yaml").write_text("{}")
    variants = {"a": {"trainer.callbacks": spec}}
    content = {"config": "fit.yaml", "overrides": {"trainer.logger": spec}, "variants": variants, "grid": {"x": [spec]}}
    Path("study.yaml").write_text(yaml.safe_dump(content))
    with nothing_runs():
        read_study(Path("study.yaml"))
    assert not Path("owned").exists()


def test_a_module_that_the_user_trusts_is_imported_and_no_other(
    complaint: Callable[..., str], mine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("ours.py").write_text("import torch\nclass Adam(torch.optim.Adam): pass\n")
    assert "ours.Adam is not imported" in complaint(model__optimizer="ours.Adam")
    assert f"{TRUST}=ours" in complaint(trainer__callbacks="ours.Callback")
    assert "ours" not in sys.modules
    monkeypatch.setenv(TRUST, "helpers.probes, ours")
    assert "ours.Sgd" in complaint(model__optimizer="ours.Sgd")
    assert "trainer.max_steps" in complaint(model__optimizer="ours.Adam", trainer__max_steps=None)
    assert "mine.Mine is not imported" in complaint(trainer__callbacks="mine.Mine")


@pytest.mark.parametrize("names", ["*", "os system", "jsonargparse", "../mine", "mine.", "é-"])
def test_what_is_trusted_are_names_of_modules(
    complaint: Callable[..., str], monkeypatch: pytest.MonkeyPatch, names: str
) -> None:
    monkeypatch.setenv(TRUST, names)
    assert TRUST in complaint()


def bomb(first: str, repeat: str, levels: int = 9) -> str:
    """A few lines of YAML in which every alias stands for ten of the line above."""
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{i}: &a{i} {repeat.format(', '.join([f'*a{i - 1}'] * 10))}" for i in range(1, levels)]
    return "\n".join(lines)


BOMBS = {
    "lists of lists": bomb("[1]", "[{}]"),
    "merged mappings": bomb("{k: 1}", "{{<<: [{}]}}", 30),
    "lists in a section": "samples: {prompts: [" + bomb("[1]", "[{}]").replace("\n", ", ")+ "]}",
    "a list in itself": "samples: {prompts: &a [*a]}",
    "a mapping in itself": "samples: &a {x: *a}",
    "a thousand levels": "samples: " + "[" * 1000 + "]" * 1000,
    "a million levels": "samples: " + "[" * 100_000 + "]" * 100_000,
    "a megabyte prompt": f"samples: {{prompts: {'a' * 2_000_000}}}",
    "many values": f"samples: {{prompts: [{'1,' * 120_000}]}}",
}  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
def test_a_config_that_would_explode_is_refused_at_once(complaint: Callable[..., str], kind: str) -> None:
    Path("bomb.yaml").write_text(BOMBS[kind])
    began = time.monotonic()
    assert len(complaint("fit", "--config=bomb.yaml")) < 3000
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("kind", BOMBS)
def test_a_study_file_that_would_explode_is_refused_at_once(here: Path, kind: str) -> None:
    Path("bomb.yaml").write_text(BOMBS[kind])
    began = time.monotonic()
    with pytest.raises(InputError, match=r"bomb\.yaml"):
        read_study(Path("bomb.yaml"))
    assert time.monotonic() - began < 10


def test_anchors_and_merge_keys_work_in_a_config(complaint: Callable[..., str]) -> None:
    Path("mine.yaml").write_text("samples: &s {steps: 3}\nfidelity: {<<: *s, num_images: 1}\n")
    assert "fidelity.num_images is 1" in complaint("fit", "--config=mine.yaml")


@pytest.mark.parametrize("option", ["--config=here", "--model=here", "--trainer.logger=here", "--samples.prompts=here"])
def test_a_pipe_that_nobody_writes_to_is_not_waited_for(complaint: Callable[..., str], option: str) -> None:
    os.mkfifo("here")
    complaint("fit", option, trainer__max_steps=None)


@pytest.mark.parametrize("value", ["[]", "[1]", "text", "girl.txt", ""])
@pytest.mark.parametrize("section", ["model", "data", "samples", "fidelity", "benchmark", "checkpoint", "trainer"])
def test_a_section_that_is_not_a_mapping_is_refused(complaint: Callable[..., str], section: str, value: str) -> None:
    Path("girl.txt").write_text("{}")
    Path("mine.yaml").write_text(f"{section}: {value}\n")
    assert "mapping of" in complaint("fit", "--config=mine.yaml", trainer__max_steps=None)
    assert f"--{section} is a section" in complaint("fit", f"--{section}={value}", trainer__max_steps=None)


@pytest.mark.parametrize("path", ["-", "/dev/zero", "girl", "https://example.com/fit.yaml", "memory://fit.yaml"])
def test_a_config_that_is_not_a_local_file_is_refused(complaint: Callable[..., str], path: str) -> None:
    assert path in complaint("fit", f"--config={path}")


def test_a_config_of_many_megabytes_is_refused_unread(complaint: Callable[..., str]) -> None:
    with Path("large.yaml").open("w") as file:
        file.truncate(200_000_000)
    assert "large.yaml has 200,000,000 bytes, more than the 1,000,000" in complaint("fit", "--config=large.yaml")


def test_a_prompt_may_have_the_name_of_a_file(complaint: Callable[..., str]) -> None:
    Path("girl.txt").write_text("a boy")
    assert "nothing to draw" not in complaint("predict", samples__prompts="girl.txt", model__pretrained="nowhere")
