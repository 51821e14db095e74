"""Fetch the front-end libraries of the console from the npm registry: `python -m tools.vendor_assets`.

The files are committed, so only a change of a version needs this command, and `npm` with it. The archive of each
package is verified against the SHA-512 below, and `vendored.json` records version, licence and SHA-256 of every file.
`--tests DIRECTORY` fetches what only the browser tests use, which is not committed.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

VENDORED = Path(__file__).parents[1] / "pipelines" / "console" / "static" / "vendor"
RECORD = "vendored.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A package of the npm registry.

    Attributes:
        name: name of the package.
        version: its exact version.
        licence: SPDX identifier of its licence.
        sha512: SHA-512 of the archive in base64, as the registry states it.
        files: name of each file in the folder, by its path in the archive.
    """

    name: str
    version: str
    licence: str
    sha512: str
    files: Mapping[str, str]


UPLOT = Package(
    name="uplot",
    version="1.6.32",
    licence="MIT",
    sha512="KIMVnG68zvu5XXUbC4LQEPnhwOxBuLyW1AHtpm6IKTXImkbLgkMy+jabjLgSLMasNuGGzQm/ep3tOkyTxpiQIw==",
    files={
        "package/dist/uPlot.iife.min.js": "uplot.min.js",
        "package/dist/uPlot.min.css": "uplot.min.css",
        "package/LICENSE": "uplot.LICENSE.txt",
    },
)
AXE = Package(
    name="axe-core",
    version="4.14.1",
    licence="MPL-2.0",
    sha512="FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
    files={"package/axe.min.js": "axe.min.js"},
)


def fetch(package: Package, folder: Path) -> dict[str, str]:
    """Fetch the files of a package, and return the SHA-256 of each by name."""
    with tempfile.TemporaryDirectory() as temporary:
        command = ["npm", "pack", f"{package.name}@{package.version}", "--silent", "--pack-destination", temporary]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=300)
        (archive,) = Path(temporary).iterdir()
        digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if digest != package.sha512:
            raise SystemExit(
                f"{package.name} {package.version}: expected an archive with SHA-512 {package.sha512}; got {digest}"
            )
        return extract(archive, package, folder)


def extract(archive: Path, package: Package, folder: Path) -> dict[str, str]:
    """Write the files of a package into a folder, and return the SHA-256 of each by name."""
    folder.mkdir(parents=True, exist_ok=True)
    checksums = {}
    with tarfile.open(archive) as opened:
        for inside, name in package.files.items():
            member = opened.extractfile(inside)
            if member is None:
                raise SystemExit(f"{package.name} {package.version} has no file {inside}")
            content = member.read()
            (folder / name).write_bytes(content)
            checksums[name] = hashlib.sha256(content).hexdigest()
    return checksums


def main() -> None:
    """Fetch the committed files, or those of the browser tests."""
    parser = argparse.ArgumentParser(description="Fetch the front-end libraries of the console.")
    parser.add_argument("--tests", type=Path, metavar="DIRECTORY", help="Folder for the files of the browser tests.")
    folder: Path | None = parser.parse_args().tests
    if folder is not None:
        fetch(AXE, folder)
        return
    record = {
        UPLOT.name: {
            "version": UPLOT.version,
            "licence": UPLOT.licence,
            "archive_sha512": UPLOT.sha512,
            "files": fetch(UPLOT, VENDORED),
        }
    }
    (VENDORED / RECORD).write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
