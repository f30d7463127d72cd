"""What is published, installed where nothing else is: in Debian's releases, and by each Python that is here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.soak,
    pytest.mark.alone,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a root directory"),
]
ROOT = Path(__file__).parents[2]
MIRROR = "http://deb.debian.org/debian"
USE = """
set -e
cd "$(mktemp -d)"
export TORPOR_STORE=$PWD/store HOME=$PWD
torpor --version
torpor doctor > doctor || true
grep -q PID doctor
sh -c 'while [ ! -e go ]; do sleep 0.1; done; echo woken' > out < /dev/null 2>&1 & job=$!
torpor checkpoint $job --then kill > saved
wait $job || true
touch go
torpor restore latest
grep -qx woken out
"""
"""A job is saved, ended and woken."""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of what `make wheel` makes."""
    made = tmp_path_factory.mktemp("dist")
    subprocess.run([ROOT / ".ci/wheel", made], check=True)
    return made


def only(published: Path, pattern: str) -> Path:
    (found,) = published.glob(pattern)
    return found


def with_dependencies(published: Path, version: str, folder: Path) -> Path:
    """The wheel, and those that it needs for a version of Python."""
    wheel = only(published, "*.whl")
    words = ["--only-binary=:all:", "--python-version", version, "--platform", "manylinux2014_x86_64"]
    words += ["--platform", "manylinux_2_28_x86_64", "--implementation", "cp"]
    # pip asks the markers of the Python that runs it, not of the one that is named
    older = ["tomli>=2.0"] if version == "3.10" else []
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", *words, "-d", folder, wheel, *older], check=True)
    return folder


def installed(python: str, wheels: str, place: str) -> list[str]:
    return [
        f"{python} -m venv {place}",
        f"{place}/bin/python -m pip install -q --no-index --find-links {wheels} torpor",
        f"PATH={place}/bin:$PATH",
        USE,
    ]


def test_the_wheel_is_for_every_glibc_since_2014(published: Path) -> None:
    assert {path.name for path in published.iterdir()} == {
        "torpor-0.1.0.tar.gz",
        "torpor-0.1.0-cp310-abi3-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
    }


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13", "3.14"])
def test_each_python_uses_the_wheel(published: Path, tmp_path: Path, version: str) -> None:
    python = shutil.which(f"python{version}")
    if python is None or subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode:
        pytest.skip(f"no python{version}")
    wheels = with_dependencies(published, version, tmp_path / "wheels")
    lines = installed(python, str(wheels), str(tmp_path / "venv"))
    subprocess.run(["sh", "-ec", "\n".join(lines)], check=True, timeout=300)


@pytest.mark.parametrize(("release", "version"), [("bullseye", "3.9"), ("bookworm", "3.11"), ("trixie", "3.13")])
def test_a_clean_debian_uses_the_wheel(published: Path, tmp_path: Path, release: str, version: str) -> None:
    """Debian 11 has an older Python than Torpor supports: pip says so."""
    if shutil.which("mmdebstrap") is None:
        pytest.skip("no mmdebstrap")
    root = tmp_path / "root"
    packages = "--include=python3,python3-venv,procps"
    subprocess.run(["mmdebstrap", "--variant=minbase", "--quiet", packages, release, root, MIRROR], check=True)
    supported = version != "3.9"
    with_dependencies(published, version if supported else "3.10", root / "wheels")
    lines = installed("/usr/bin/python3", "/wheels", "/venv")
    inside = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", f"--root={root}"]
    done = subprocess.run(
        [*inside, "/bin/sh", "-ec", "\n".join(lines)], capture_output=True, text=True, check=False, timeout=600
    )
    if supported:
        assert done.returncode == 0, done.stdout + done.stderr
    else:
        assert done.returncode == 1 and "No matching distribution found for torpor" in done.stderr


def test_the_recipe_for_conda_is_rendered(published: Path, tmp_path: Path) -> None:
    """Its requirements are those of the wheel."""
    python = tmp_path / "venv/bin/python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", "py-rattler-build>=0.60"], check=True)
    render = (
        "import sys\nfrom rattler_build import Stage0Recipe, VariantConfig\n"
        "recipe = Stage0Recipe.from_file(sys.argv[1])\n"
        "(one,) = recipe.render(VariantConfig({'c_compiler': ['gcc'], 'c_stdlib': ['sysroot']}))\n"
        "print(one.recipe.to_dict())"
    )
    recipe = ROOT / ".ci/conda/recipe.yaml"
    shown = subprocess.run([python, "-c", render, recipe], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    for need in requires("torpor") or []:
        if "extra" not in need and "python_version" not in need:
            assert need.replace(">=", " >=") in recipe.read_text()
