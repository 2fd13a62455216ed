"""Make the folder of wheels that a machine with a GPU but without a network lacks.

    python -m tools.gpu_wheels -o .whl            # then carry the folder along with the checkout

Then run on that machine, in the checkout:

    python3 -m pip install -q --no-index --no-deps --no-compile --target /tmp/site .whl/*.whl
    export PYTHONPATH=/tmp/site && python3 -m tools.gpu_check -o "$OUT"

The packages are those of pyproject.toml with all their dependencies, without those that the machine
has (``PRESENT``). Versions are those installed here. With ``--ray`` the folder also gets
``ray.tar.xz``: Ray without its Java archive, dashboard page and libraries, a quarter of the size of
its wheel, for ``tar -xf .whl/ray.tar.xz -C /tmp/site``.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Sequence
from importlib.metadata import requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

#: The dependencies that the machine already has. A package that is not listed is added to the
#: folder, so a gap in this list only costs size.
PRESENT = frozenset({
    "accelerate", "attrs", "certifi", "charset-normalizer", "click", "coverage", "filelock",
    "fsspec", "httpcore", "httpx", "huggingface-hub", "hypothesis", "idna", "jinja2", "joblib",
    "lazy-loader", "lightning-utilities", "markupsafe", "matplotlib", "msgpack", "networkx",
    "numpy", "packaging", "pandas", "patsy", "peft", "pillow", "pluggy", "protobuf", "psutil",
    "py-cpuinfo", "pygments", "pytest", "pytest-benchmark", "python-dateutil", "pyyaml", "regex",
    "requests", "rich", "safetensors", "scikit-image", "scikit-learn", "scipy", "sentencepiece",
    "setuptools", "shellingham", "six", "sortedcontainers", "statsmodels", "sympy", "timm",
    "tokenizers", "torch", "torchmetrics", "torchvision", "tqdm", "transformers", "triton", "typer",
    "typing-extensions", "urllib3", "wrapt", "xxhash", "zipp",
})  # fmt: skip
#: Parts of Ray's wheel that tasks and actors do not need.
RAY_LEFT_OUT = re.compile(r"ray/(jars|dashboard/client|rllib|serve|tune|data|train|llm|air)/")

#: The most bytes of the checkout and the wheels together.
MOST = 60 * 2**20

PLATFORMS = (
    "manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64",
    "manylinux2014_x86_64", "manylinux1_x86_64",
)  # fmt: skip


def missing(project: Path, *, ray: bool, python: str) -> list[str]:
    """Names of the packages that a checkout needs and the machine lacks, sorted.

    ``project``: the checkout's pyproject.toml; ``ray``: whether to include the extra ``ray``;
    ``python``: the machine's version, such as ``3.12``.
    """
    table = tomllib.loads(project.read_text("utf-8"))["project"]
    waiting = [*table["dependencies"], *(table["optional-dependencies"]["ray"] if ray else ())]
    there = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    found: set[str] = set()
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        is_needed = requirement.marker is None or requirement.marker.evaluate(there)
        if is_needed and name not in PRESENT | found:
            found.add(name)
            waiting += requires(name) or ()
    return sorted(found)


def download(names: Sequence[str], folder: Path, *, python: str) -> None:
    """Download a wheel of each package, in the version installed here, for Linux on x86-64."""
    command = [
        sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:",
        "--implementation", "cp", "--python-version", python, "-d", str(folder),
        *(word for platform in PLATFORMS for word in ("--platform", platform)),
        *(f"{name}=={version(name)}" for name in names),
    ]  # fmt: skip
    subprocess.run(command, check=True)


def repack_ray(wheel: Path, archive: Path) -> None:
    """Write the needed part of Ray's wheel as a ``.tar.xz``."""
    with tempfile.TemporaryDirectory() as place:
        with zipfile.ZipFile(wheel) as whole:
            for entry in whole.infolist():
                if not RAY_LEFT_OUT.match(entry.filename):
                    path = Path(whole.extract(entry, place))
                    path.chmod(entry.external_attr >> 16 or 0o644)  # Ray runs its own executables
        with tarfile.open(archive, "w:xz", preset=9) as packed:
            packed.add(place, arcname=".")


def checkout_bytes() -> int:
    """Bytes of the files that git tracks in the current folder."""
    listed = subprocess.run(["git", "ls-files", "-z"], check=True, capture_output=True).stdout
    names = listed.decode("utf-8", "surrogateescape").split("\0")
    return sum(Path(name).stat().st_size for name in names if name and Path(name).is_file())


def main() -> int:
    """Returns 0, or 1 if checkout and wheels together are too large."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.gpu_wheels", description=__doc__.splitlines()[0]
    )
    parser.add_argument("-o", "--output", type=Path, default=Path(".whl"), help="folder to fill")
    parser.add_argument("--python", default="3.12", help="Python of the machine [default: 3.12]")
    parser.add_argument("--ray", action="store_true", help="with Ray, repacked (a minute)")
    options = parser.parse_args()
    folder: Path = options.output
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        parser.error(f"-o: expected an empty or new folder, got {folder}; empty it or name another")
    names = missing(Path("pyproject.toml"), ray=options.ray, python=options.python)
    download(names, folder, python=options.python)
    for wheel in folder.glob("ray-*.whl"):
        repack_ray(wheel, folder / "ray.tar.xz")
        wheel.unlink()
    files = sorted(folder.iterdir())
    for file in files:
        print(f"{file.stat().st_size / 2**20:6.1f} MiB  {file.name}")
    wheels, checkout = sum(file.stat().st_size for file in files), checkout_bytes()
    total = wheels + checkout
    print(
        f"{wheels / 2**20:6.1f} MiB of wheels and {checkout / 2**20:.1f} MiB of checkout: "
        f"{total / 2**20:.1f} MiB of {MOST / 2**20:.0f}"
    )
    return 0 if total <= MOST else 1


if __name__ == "__main__":
    sys.exit(main())
