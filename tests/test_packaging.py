"""One distribution, one import root, four folders; light imports; the guards."""

import ast
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"lsr": "lsr", "lsr.index": "index", "lsr.training": "training", "lsr.eval": "eval"}
HEAVY = {"torch", "transformers", "ranx", "ir_datasets", "pandas", "jnius", "jpype", "pyserini"}

# Packages in pipeline order: a module may import from its own package and from those before it.
ORDER = ["base", "index", "retriever", "eval", "front"]
RETRIEVER = {"lsr.retriever"}
FRONT = {
    "lsr.demo",
    "lsr.cli",
    "lsr.cli_options",
    "lsr.cli_search",
    "lsr.cli_data",
    "lsr.cli_train",
    "lsr.cli_eval",
    "lsr.cli_bench",
}


def test_the_package_list_is_the_folders():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert project["package-dir"] == FOLDERS
    assert sorted(project["packages"]) == sorted(FOLDERS)
    for folder in FOLDERS.values():
        folders = {p.name for p in (ROOT / folder).iterdir() if p.is_dir()} - {"__pycache__"}
        assert folders == ({"models"} if folder == "lsr" else set()), "packages are flat"
    assert not list((ROOT / "lsr" / "models").rglob("*.py"))


def test_the_wheel_holds_every_module(tmp_path):
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for package, folder in FOLDERS.items():
        for path in (ROOT / folder).glob("*.py"):
            assert f"{package.replace('.', '/')}/{path.name}" in names
    assert "lsr/py.typed" in names
    for path in (ROOT / "lsr" / "models").rglob("*"):
        assert path.is_dir() or str(path.relative_to(ROOT)) in names
    assert not any(name.startswith(("index/", "training/", "eval/", "tests/")) for name in names)


@pytest.mark.parametrize("folder", ["index", "training", "eval"])
def test_a_folder_imported_by_its_own_name_says_how_to_install(folder):
    command = [sys.executable, "-c", f"import {folder}"]
    failed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "install the project (pip install -e .)" in failed.stderr


@pytest.mark.parametrize("module", ["lsr", "lsr.index"])
def test_imports_are_light(module):
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert module in loaded
    assert not HEAVY & {name.split(".")[0] for name in loaded}


def test_every_public_name_resolves():
    import lsr

    for name in lsr.__all__:
        assert getattr(lsr, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = lsr.nonsense


def rank(module: str) -> int:
    if module in FRONT:
        return ORDER.index("front")
    if module in RETRIEVER:
        return ORDER.index("retriever")
    for package in ("index", "eval"):
        if module.startswith(f"lsr.{package}"):
            return ORDER.index(package)
    return ORDER.index("base")


def imports_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    guarded = {  # imports for type hints alone
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if node in guarded:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.startswith("lsr.")}


def test_imports_only_go_forward():
    for package, folder in FOLDERS.items():
        for path in (ROOT / folder).glob("*.py"):
            module = f"{package}.{path.stem}"
            for imported in imports_of(path):
                assert rank(imported) <= rank(module), f"{module} imports {imported}"
                if package == "lsr.training":
                    assert not imported.startswith(("lsr.index", "lsr.eval")), f"{module} imports {imported}"


def test_kernel_modules_do_not_call_each_other():
    for name in ("kernels", "build_kernels", "block_kernels", "seismic_kernels"):
        assert imports_of(ROOT / "index" / f"{name}.py") - {"lsr.index.segment"} == {"lsr.numba_support"}


def test_kernels_compile_where_no_cache_can_be_written(monkeypatch):
    """A read-only container: Numba finds no folder that it can write to."""
    from numba.core.caching import CompileResultCacheImpl

    from lsr.numba_support import kernel

    monkeypatch.setattr(CompileResultCacheImpl, "_locator_classes", [])
    assert kernel(lambda x: 2 * x)(21) == 42
