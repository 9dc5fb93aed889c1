"""The house stays in order: imports follow the table, notebooks are clean, package and README match them."""

import ast
import filecmp
import json
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NUMBERED = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
NOTEBOOKS = sorted((ROOT / "nbs").rglob("*.ipynb"))


def table() -> list[str]:
    "The modules of CONTRIBUTING.md's table, top to bottom."
    rows = re.findall(
        r"^\| `(\d\d[a-z]?_\w+)` \|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M
    )
    return [row.partition("_")[2] for row in rows]


def imported(module: str) -> set[str]:
    "The lungseg modules that a module imports, wherever in its code."
    tree = ast.parse((ROOT / "lungseg" / f"{module}.py").read_text(encoding="utf-8"))
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    relative = {node.module for node in froms if node.level}
    absolute = [node.module for node in froms if not node.level]
    absolute += [a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names]
    return relative | {name.split(".")[1] for name in absolute if name.startswith("lungseg.")}


def test_the_table_names_every_numbered_notebook():
    assert table() == [path.stem.partition("_")[2] for path in NUMBERED]


@pytest.mark.parametrize("module", table())
def test_imports_follow_the_table(module):
    above = table()[: table().index(module)]
    assert imported(module) <= set(above), "imports only from rows above its own"


def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


@pytest.mark.parametrize("path", NUMBERED, ids=lambda p: p.stem)
def test_numbered_notebooks_carry_no_outputs(path):
    assert [c["id"] for c in cells(path) if c.get("outputs") or c.get("execution_count")] == []


@pytest.mark.parametrize("path", NUMBERED, ids=lambda p: p.stem)
def test_a_numbered_notebook_is_a_chapter(path):
    "Prose, examples outside the exported cells, and at least one check."
    markdown = [c for c in cells(path) if c["cell_type"] == "markdown"]
    source = ["".join(c["source"]) for c in cells(path) if c["cell_type"] == "code"]
    examples = [s for s in source if not re.match(r"#\| ?(export|hide|default_exp)", s)]
    assert len(markdown) >= 4 and len(examples) >= 3
    assert any(re.search(r"\b(test_\w+|assert|expect_fail)\b", s) for s in source)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    "A copy of the project in which the notebooks have been exported and cleaned again."
    copy = tmp_path_factory.mktemp("fresh")
    shutil.copy(ROOT / "settings.ini", copy)
    shutil.copytree(ROOT / "nbs", copy / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    (copy / "lungseg").mkdir()
    shutil.copy(ROOT / "lungseg" / "__init__.py", copy / "lungseg")
    for tool in ("nbdev_export", "nbdev_clean"):
        subprocess.run([Path(sys.executable).parent / tool], cwd=copy, check=True, capture_output=True)
    return copy


def test_the_package_matches_the_notebooks(fresh):
    exported = sorted(path.name for path in (fresh / "lungseg").glob("*.py"))
    assert exported == sorted(path.name for path in (ROOT / "lungseg").glob("*.py"))
    _, differ, missing = filecmp.cmpfiles(fresh / "lungseg", ROOT / "lungseg", exported, shallow=False)
    assert (differ, missing) == ([], []), "run nbdev_export"


def test_notebooks_are_clean(fresh):
    paths = [str(path.relative_to(ROOT)) for path in NOTEBOOKS if ".ipynb_checkpoints" not in path.parts]
    _, differ, missing = filecmp.cmpfiles(fresh, ROOT, paths, shallow=False)
    assert (differ, missing) == ([], []), "run nbdev_clean"


def test_every_dependency_has_its_line_in_the_readme():
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    keys = [key for key in config["DEFAULT"] if key.endswith("requirements")]
    wanted = [re.split(r"[<>=~\[]", line)[0] for key in keys for line in config["DEFAULT"][key].split()]
    readme = (ROOT / "README.md").read_text(encoding="utf-8").lower()
    assert [name for name in wanted if name.lower() not in readme] == []


def test_no_path_of_a_machine_is_committed():
    pattern = re.compile(r"(?<![\w.])/(home|root|Users|work|tmp)/[A-Za-z0-9_.]+/")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    texts = {".py", ".ipynb", ".md", ".ini", ".yml", ".toml", ".js", ".css", ".html", ".txt"}
    tracked = [ROOT / name for name in listed.stdout.split("\0") if Path(name).suffix in texts]
    hits = [p.name for p in tracked if p.is_file() and pattern.search(p.read_text(encoding="utf-8"))]
    assert hits == []


def test_the_command_starts_without_the_heavy_libraries():
    heavy = "torch pandas matplotlib scipy skimage pydicom nbdev ipywidgets"
    code = f"import sys, lungseg.cli; print([m for m in '{heavy}'.split() if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
