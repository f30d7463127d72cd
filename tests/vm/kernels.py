"""The kernels of the machines, and what they boot from: Debian's packages, which are unpacked, not installed.

All of it is kept in build/vm. A kernel of Debian's has its drivers as modules; the ones that a machine needs are in its
initramfs, in the order of their dependencies.
"""

from __future__ import annotations

import lzma
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
BUILD = CHECKOUT / "build" / "vm"
LIBRARIES = next((CHECKOUT / ".venv/lib").glob("python3*")) / "site-packages"
LARGE = (
    *("pyarrow", "playwright", "scipy", "pandas", "sklearn", "numpy", "babel", "jedi", "jupyterlab", "notebook"),
    *("mypy", "ruff", "clang", "bokeh", "distributed", "dask", "matplotlib", "PIL", "pillow", "IPython", "debugpy"),
)
"""Libraries that no machine needs, by the beginnings of their names: most of the .venv."""
MIRROR = "http://deb.debian.org/debian"
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
GUEST = "bookworm"
"""Debian's release in the machine: that of the host, whose .venv the guest runs."""
MODULES = [
    *("virtio_pci", "virtio_blk", "virtio_rng", "ext4", "crc32c_generic", "overlay", "loop"),
    *("unix_diag", "tcp_diag", "udp_diag"),
]
PACKAGES = ["python3", "libpython3.11-stdlib", "procps", "iproute2", "tmux", "vim-tiny", "util-linux"]
"""What the guest has besides Debian's smallest system."""


@dataclass(frozen=True)
class Kernel:
    """A kernel of Debian's."""

    name: str
    suite: str
    """The part of the archive that has it."""
    version: str
    """What the package's name begins with after "linux-image-"."""


KERNELS = {
    one.name: one
    for one in (
        Kernel("5.10", "bullseye", "5.10."),
        Kernel("6.1", "bookworm", "6.1."),
        Kernel("6.12", "bookworm-backports", "6.12."),
        Kernel("7.3", "trixie-backports", "7.3."),
    )
}


@dataclass(frozen=True)
class Bootable:
    """What qemu starts."""

    release: str
    kernel: Path
    initramfs: Path


class Archive:
    """A suite of Debian's archive, with lists and caches of its own: the host's apt is not touched."""

    def __init__(self, suite: str) -> None:
        self.folder = BUILD / "apt" / suite
        for below in ("lists/partial", "archives/partial"):
            (self.folder / below).mkdir(parents=True, exist_ok=True)
        sources = self.folder / "sources.list"
        sources.write_text(f"deb [signed-by={KEYS}] {MIRROR} {suite} main\n")
        self._options = [
            *("-o", f"Dir::Etc::sourcelist={sources}", "-o", "Dir::Etc::sourceparts=/dev/null"),
            *("-o", f"Dir::State::Lists={self.folder / 'lists'}"),
            *("-o", f"Dir::Cache={self.folder}", "-o", f"Dir::Cache::archives={self.folder / 'archives'}"),
            *("-o", "APT::Sandbox::User=root"),  # the checkout may be one that only root reads
        ]
        run("apt-get", *self._options, "-qq", "update")

    def newest(self, pattern: str) -> str:
        """The package of the highest version among those whose names match."""
        found = run("apt-cache", *self._options, "search", "--names-only", pattern).splitlines()
        names = "\n".join(line.split()[0] for line in found)
        if not names:
            raise LookupError(f"{MIRROR} has no package {pattern} in {self.folder.name}")
        return run("sort", "-V", given=names).split()[-1]

    def parts(self, package: str) -> list[str]:
        """A kernel's package, and those with its image and its modules, which Debian has apart since 7.0."""
        needs = run("apt-cache", *self._options, "depends", package).split()
        return [package, *(word for word in needs if word.startswith(("linux-binary-", "linux-modules-")))]

    def fetch(self, packages: Sequence[str], folder: Path) -> None:
        """Unpack packages below `folder`."""
        with TemporaryDirectory(dir=BUILD) as draft:
            run("apt-get", *self._options, "-qq", "download", *packages, folder=Path(draft))
            for archive in Path(draft).glob("*.deb"):
                run("dpkg-deb", "--extract", str(archive), str(folder))


def run(*words: str, folder: Path | None = None, given: str | None = None) -> str:
    """Run a command; its output, or RuntimeError with what it said."""
    ran = subprocess.run(words, cwd=folder, input=given, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"{' '.join(words[:2])} ended with {ran.returncode}: {ran.stderr.strip()[-800:]}")
    return ran.stdout


def prepare(kernel: Kernel) -> Bootable:
    """The kernel and its initramfs, made once."""
    place = BUILD / "kernels" / kernel.name
    if not (place / "initramfs").exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        archive = Archive(kernel.suite)
        package = archive.newest(f"^linux-image-{kernel.version.replace('.', '[.]')}.*-cloud-amd64$")
        with TemporaryDirectory(dir=BUILD) as draft:
            unpacked = Path(draft)
            archive.fetch(archive.parts(package), unpacked)
            release = package.removeprefix("linux-image-")
            place.mkdir(parents=True, exist_ok=True)
            images = [one for one in unpacked.rglob("vmlinuz*") if one.is_file()]
            shutil.copy(images[0], place / "kernel")
            (place / "release").write_text(release)
            _initramfs(unpacked, release, place / "initramfs")
    return Bootable((place / "release").read_text(), place / "kernel", place / "initramfs")


def _initramfs(unpacked: Path, release: str, result: Path) -> None:
    # Debian has merged /lib into /usr/lib since trixie's kernels.
    modules = next(one for one in (unpacked / "lib/modules", unpacked / "usr/lib/modules") if one.exists()) / release
    for packed in modules.rglob("*.ko.xz"):
        packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
        packed.unlink()
    if not (unpacked / "lib").exists():
        (unpacked / "lib").symlink_to("usr/lib")
    run("depmod", "-b", str(unpacked), release)
    root = unpacked / "initramfs"
    (root / "modules").mkdir(parents=True)
    for name in ("bin", "dev", "proc", "mnt"):
        (root / name).mkdir()
    shutil.copy("/bin/busybox", root / "bin" / "busybox")
    for number, path in enumerate(_in_order(modules, MODULES)):
        shutil.copy(path, root / "modules" / f"{number:02}-{path.name}")
    shutil.copy(HERE / "init.sh", root / "init")
    (root / "init").chmod(0o755)
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    draft = result.with_suffix(".draft")
    with draft.open("wb") as output:
        packing = ["busybox", "cpio", "-o", "-H", "newc"]
        subprocess.run(packing, cwd=root, input=names.encode(), stdout=output, stderr=subprocess.DEVNULL, check=True)
    draft.rename(result)


def _in_order(modules: Path, wanted: list[str]) -> list[Path]:
    # What is built into a kernel is in no line of modules.dep.
    needs = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        needs[_name(path)] = [*reversed(others.split()), path]
    order = dict.fromkeys(path for name in wanted for path in needs.get(name, ()))
    return [modules / path for path in order]


def _name(path: str) -> str:
    return Path(path).name.split(".")[0].replace("-", "_")


def disk(folder: Path, image: Path, room: str) -> None:
    """Make a disk of a folder, with an ext4 file system that has so much room."""
    draft = image.with_suffix(".draft")
    draft.unlink(missing_ok=True)
    run("mke2fs", "-q", "-t", "ext4", "-m", "0", "-d", str(folder), str(draft), room)
    draft.rename(image)


@cache
def root_disk() -> Path:
    """The disk that all machines boot from, made once; what a machine writes to it is gone with the machine."""
    image = BUILD / "root.ext4"
    if not image.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=BUILD) as draft:
            wanted = f"--include={','.join(PACKAGES)}"
            user = "--customize-hook=chroot $1 useradd --create-home --uid 1000 --shell /bin/bash scientist"
            run("mmdebstrap", "--variant=minbase", "--quiet", wanted, user, GUEST, f"{draft}/root", MIRROR)
            disk(Path(draft, "root"), image, "2G")
    return image


@cache
def checkout_disk() -> Path:
    """A disk with what a machine needs of the checkout and its .venv, as they are now: mounted where they lie here."""
    image = BUILD / "checkout.ext4"
    with TemporaryDirectory(dir=BUILD) as draft:
        for name in ("engine", "tests", "jupyter_ext", "scheduler_hooks", "pyproject.toml"):
            run("cp", "-a", str(CHECKOUT / name), draft)
        place = Path(draft) / LIBRARIES.relative_to(CHECKOUT)
        place.mkdir(parents=True)
        run("cp", "-a", str(CHECKOUT / ".venv/bin"), str(CHECKOUT / ".venv/pyvenv.cfg"), f"{draft}/.venv")
        for library in LIBRARIES.iterdir():
            if not library.name.startswith(LARGE):
                run("cp", "-a", str(library), str(place))
        # In a machine a program would take minutes to read its sources.
        compiled = [str(Path(draft, name)) for name in ("engine", "tests")]
        run(sys.executable, "-m", "compileall", "-q", "-s", draft, "-p", str(CHECKOUT), *compiled)
        disk(Path(draft), image, "1G")
    return image
