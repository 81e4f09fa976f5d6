"""
What a release is made of: `python -m tests.release` puts sdist, wheel and CycloneDX file of the last commit into dist/.

It needs `pip install -e '.[release]'`. Two builds of one commit are the same, byte for byte, if setuptools is the same:
the wheel's WHEEL file says which one it was.
"""

from __future__ import annotations

import configparser
import gzip
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.source import ROOT

#: What the sdist is built from, beside the package. Tests and documentation come with the tag.
NEEDED = ("LICENSE", "README.md", "pyproject.toml", "setup.cfg")


def build(source: Path, target: Path, epoch: int, *options: str) -> tuple[Path, Path]:
    """Build the sdist from a clean tree, then the wheel from the sdist. `options` are those of `python -m build`."""
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch)}

    def run(kind: str, tree: Path, place: Path) -> Path:
        command = [sys.executable, "-m", "build", kind, *options, "--outdir", str(place), str(tree)]
        # The modes of the metadata's files go into the archives.
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment, umask=0o022)
        return next(place.iterdir())

    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        built = run("--sdist", source, Path(directory, "sdist"))
        sdist = target / built.name
        _normalize(built, sdist, epoch)
        with tarfile.open(sdist) as archive:
            archive.extractall(directory, filter="data")
        wheel = run("--wheel", Path(directory, sdist.name.removesuffix(".tar.gz")), Path(directory, "wheel"))
        return sdist, Path(shutil.move(wheel, target / wheel.name))


def _normalize(built: Path, sdist: Path, epoch: int) -> None:
    """Copy an sdist without its times, users and order: setuptools takes those from the machine."""
    with (
        tarfile.open(built) as old,
        sdist.open("wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=epoch) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted((each for each in old if each.isfile()), key=lambda each: each.name):
            member.mtime, member.mode, member.uid, member.gid, member.uname, member.gname = epoch, 0o644, 0, 0, "", ""
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member))


def _bill_of_materials(wheel: Path, target: Path, epoch: int) -> Path:
    """Write what the wheel with all extras brings along, as CycloneDX JSON."""
    name, version, *_ = wheel.name.split("-")
    bill = target / f"{name}-{version}.cdx.json"
    with tempfile.TemporaryDirectory() as directory:
        python = Path(directory, "environment", "bin", "python")
        _run(sys.executable, "-m", "venv", "--without-pip", str(python.parents[1]))
        _run(sys.executable, "-m", "pip", "--quiet", "--python", str(python), "install", f"{wheel}[all]")
        # cyclonedx-py reads what the file is about from here, and not from the wheel.
        root = Path(directory, "pyproject.toml")
        root.write_text(
            f'[project]\nname = "{name.replace("_", "-")}"\nversion = "{version}"\nlicense = "MIT"\n'
            f"dependencies = {_requirements()}\n"
        )
        _run(
            *("cyclonedx-py", "environment", "--pyproject", str(root), "--mc-type", "library"),
            *("--output-reproducible", "-o", str(bill), str(python)),
            SOURCE_DATE_EPOCH=str(epoch),
        )
    return bill


def _requirements() -> list[str]:
    """Return what setup.cfg requires, with all extras that users install."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = dict(setup["options.extras_require"])
    names = extras["all"].strip().removeprefix("cqrs-sync[").removesuffix("]").split(",")
    texts = [setup["options"]["install_requires"], *(extras[name] for name in names)]
    return [line for text in texts for line in text.split("\n") if line]


def _run(*command: str, **environment: str) -> None:
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, **environment})


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], check=True, cwd=ROOT, stdout=subprocess.PIPE).stdout


def main() -> int:
    """Build twice, compare, check, and say what is in dist/."""
    target = ROOT / "dist"
    shutil.rmtree(target, ignore_errors=True)
    epoch = int(_git("log", "-1", "--format=%ct"))
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory, "tree")
        tree.mkdir()
        _git("archive", "--output", f"{directory}/commit.tar", "HEAD", "cqrs_sync", *NEEDED)
        with tarfile.open(f"{directory}/commit.tar") as archive:
            archive.extractall(tree, filter="data")
        sdist, wheel = first = build(tree, target, epoch)
        second = build(tree, Path(directory, "again"), epoch)
        if [one.read_bytes() for one in first] != [one.read_bytes() for one in second]:
            raise SystemExit("two builds of the same commit differ")
    _run("twine", "check", "--strict", str(sdist), str(wheel))
    _run("check-wheel-contents", str(wheel))
    for path in (sdist, wheel, _bill_of_materials(wheel, target, epoch)):
        print(f"{path.stat().st_size:>9} bytes  {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
