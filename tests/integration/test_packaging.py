"""The sdist and the wheel: each gives an ordinary user a working `torpor`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.users import User

pytestmark = pytest.mark.alone  # pip asks a registry
ROOT = Path(__file__).parents[2]
PACKAGES = ("torpor", "torpor_jupyter", "torpor_slurm", "torpor_dask")
# What is no part of the sources: made by make, by tools, or by git.
MADE = shutil.ignore_patterns(
    ".*cache*", ".git", ".venv", "build", "__pycache__", "*.so", "torpor-init", "node_modules"
)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel built from it."""
    sources = tmp_path_factory.mktemp("sources") / "torpor"
    shutil.copytree(ROOT, sources, ignore=MADE)
    made = tmp_path_factory.mktemp("packages")
    built = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", made, sources],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (sdist,) = made.glob("*.tar.gz")
    (wheel,) = made.glob("*.whl")
    return sdist, wheel


def test_the_sdist_holds_all_sources(packages: tuple[Path, Path]) -> None:
    with tarfile.open(packages[0]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    wanted = {
        str(path.relative_to(ROOT))
        for folder in ("native", *(f"*/{package}" for package in PACKAGES))
        for path in ROOT.glob(f"{folder}/**/*.*")
        if path.is_file() and "__pycache__" not in path.parts and path.name != "_native.abi3.so"
    }
    assert len(wanted) > 10
    assert wanted - names == set()
    assert {"LICENSE", "README.md", "CHANGELOG.md", "Makefile", "pyproject.toml", ".ci/run"} <= names


def test_the_wheel_fits_any_python(packages: tuple[Path, Path]) -> None:
    wheel = packages[1]
    assert "-cp310-abi3-" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        modes = {info.filename: info.external_attr >> 16 for info in archive.infolist()}
    assert modes["torpor/torpor-init"] & 0o777 == 0o755
    assert "torpor-0.1.0.data/data/share/man/man1/torpor.1" in modes
    assert {"torpor/_native.abi3.so", "torpor/py.typed", "torpor/image/image.proto"} <= modes.keys()
    assert {"torpor_jupyter/server/api.yaml", "torpor_slurm/admin/torpor.c", "torpor_dask/torpor.yaml"} <= modes.keys()
    assert [modes[f"torpor-0.1.0.data/scripts/{name}"] & 0o777 for name in ("torpor", "torpor-cli")] == [0o755] * 2
    data = "torpor-0.1.0.data/data"
    assert f"{data}/etc/jupyter/jupyter_server_config.d/torpor.json" in modes
    assert f"{data}/share/jupyter/labextensions/torpor/package.json" in modes
    folders = {name.partition("/")[0] for name in modes}
    assert folders == {*PACKAGES, "torpor-0.1.0.data", "torpor-0.1.0.dist-info"}


def test_an_ordinary_user_installs_and_uses_the_wheel(packages: tuple[Path, Path], ordinary_account: User) -> None:
    user = ordinary_account
    wheel = user.own(Path(shutil.copy(packages[1], user.tmp)))
    pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    python = user.tmp / "venv/bin/python"
    # The interpreter below this environment: one that any user may run, unlike a venv's own link to it.
    base = Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")
    user.run([base, "-m", "venv", user.tmp / "venv"], check=True)
    user.run([python, "-m", "pip", "install", "--quiet", wheel], check=True, timeout=150, env=pip)
    torpor = user.tmp / "venv/bin/torpor"
    assert user.run([torpor, "--version"], check=True).stdout == "torpor 0.1.0 (from sources without their history)\n"
    doctor = user.run([torpor, "doctor", "--json"])
    told = json.loads(doctor.stdout)
    assert doctor.returncode == (0 if told["checkpoint"] and told["restore_rootless"] else 1)
    where = "import torpor, os; print(os.path.join(os.path.dirname(torpor.__file__), 'torpor-init'))"
    init = Path(user.run([python, "-c", where], check=True).stdout.strip())
    assert os.access(init, os.X_OK)
    assert init.is_relative_to(user.tmp)
    # Static: the kernel starts them without an interpreter, so they have no PT_INTERP (ld.so's path).
    assert all(b"ld-linux" not in program.read_bytes() for program in (init, torpor))
    ignoring: list[str | Path] = [
        "env",
        "--ignore-signal=PIPE",
        torpor,
        "run",
        "--",
        "grep",
        "SigIgn",
        "/proc/self/status",
    ]
    assert int(user.run(ignoring, check=True).stdout.split()[1], 16) & 1 << 12, "torpor-cli is not executed as it is"


def test_a_build_without_a_compiler_says_so_in_one_line(packages: tuple[Path, Path], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", str(tmp_path), str(packages[0])]
    built = subprocess.run(command, env={**os.environ, "CC": "/none/cc"}, capture_output=True, text=True, check=False)
    assert built.returncode == 1
    (line,) = [line for line in built.stderr.splitlines() if "torpor cannot be built here" in line]
    assert "a C compiler (/none/cc; Debian, Ubuntu: gcc libc6-dev)" in line
    assert "Traceback" not in built.stderr


def test_a_build_says_from_which_commit_it_is(tmp_path: Path) -> None:
    """Also one from an sdist, which has no history."""
    sources = tmp_path / "torpor"
    shutil.copytree(ROOT, sources, ignore=MADE)
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=x", "-c", "user.email=x", "commit", "-qm", "x"]):
        subprocess.run(["git", *words], cwd=sources, check=True)
    asked = ["git", "rev-parse", "--short=12", "HEAD"]
    commit = subprocess.run(asked, cwd=sources, check=True, capture_output=True, text=True).stdout.strip()
    made = tmp_path / "made"
    subprocess.run([sys.executable, "-m", "build", "--outdir", made, sources], check=True, capture_output=True)
    (wheel,) = made.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("torpor/build.txt").decode() == commit
