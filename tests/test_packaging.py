"""The wheel and the sdist hold the package, whole, and nothing else."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import cssformer

pytest.importorskip("build")
ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "src" / "cssformer"


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `python -m build` makes of a copy of the project, which stays as it is."""
    root = tmp_path_factory.mktemp("project")
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"):
        shutil.copy(ROOT / name, root)
    shutil.copytree(SOURCES, root / "src" / "cssformer", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "test_readme.py", root / "tests")
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", str(root)], check=True, capture_output=True)
    return root / "dist"


def test_the_wheel(dist: Path) -> None:
    (path,) = dist.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
        about = Parser().parsestr(wheel.read(f"cssformer-{cssformer.__version__}.dist-info/METADATA").decode())
    files = (file for file in SOURCES.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    assert held == {f"cssformer/{file.relative_to(SOURCES)}" for file in files}
    assert about["Version"] == cssformer.__version__
    # Without an extra, nothing that only training, studies or exports use.
    needed = {line.split(";")[0].partition(">")[0] for line in about.get_all("Requires-Dist") if "extra ==" not in line}
    assert not needed & {"lightning", "tensorboard", "rich", "matplotlib", "scipy", "onnx", "transformers"}


def test_the_sdist(dist: Path) -> None:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as sdist:
        tops = {Path(name).parts[1] for name in sdist.getnames() if len(Path(name).parts) > 1}
    project = {"pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "src"}
    assert tops == project | {"PKG-INFO", "setup.cfg"}


def test_an_index_takes_both(dist: Path) -> None:
    pytest.importorskip("twine")
    files = [str(file) for file in dist.iterdir()]
    done = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
