"""The things that others made and the suite is built from: fetched once, checked, never needed at run time.

`sources.json` pins every package with its licence and hash. npm packages come by `npm pack`, Debian's by
`apt-get download`; both use whatever registry the machine is set up for.
"""

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image, ImageFont

SOURCES = Path(__file__).parents[2] / ".tiny" / "sources"
PINNED = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
STYLES = ("twitter", "google", "fluent flat", "fluent modern")

FLUENT = {
    "blue_car": "sport-utility-vehicle",
    "corn": "ear-of-corn",
    "dromedary_camel": "camel",
    "ear_of_rice": "sheaf-of-rice",
    "hocho": "kitchen-knife",
    "school_satchel": "backpack",
    "sheep": "ewe",
    "ski": "skis",
}
"""Names that Fluent's files have and Unicode does not."""


def fetch() -> None:
    """Bring every source that is not there yet, check and unpack all of them. Raises ValueError for a wrong hash."""
    SOURCES.mkdir(parents=True, exist_ok=True)
    for name, facts in PINNED["npm"].items():
        path = npm_file(name)
        if not path.exists():
            subprocess.run(["npm", "pack", name], cwd=SOURCES, check=True, capture_output=True)
        check(path, facts["sha256"])
        unpacked(name)
    for name, facts in PINNED["debian"].items():
        package, version = name.split("=")
        path = SOURCES / f"{package}_{version}_all.deb"
        if not path.exists():
            subprocess.run(["apt-get", "download", name], cwd=SOURCES, check=True, capture_output=True)
        check(path, facts["sha256"])
        if not (SOURCES / package).exists():
            shutil.rmtree(SOURCES / f".{package}", ignore_errors=True)
            subprocess.run(["dpkg", "-x", path, SOURCES / f".{package}"], check=True)
            (SOURCES / f".{package}").rename(SOURCES / package)


def check(path: Path, sha256: str) -> None:
    """Raise ValueError unless the file has this hash."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise ValueError(f"{path}: sha256 is {found}, not {sha256}; delete it and fetch again")


def npm_file(name: str) -> Path:
    """Where `npm pack` puts a package, e.g. `@fontsource/arvo@5.3.0` in `fontsource-arvo-5.3.0.tgz`."""
    stem = name.removeprefix("@").replace("/", "-").replace("@", "-")
    return SOURCES / f"{stem}.tgz"


def npm_name(start: str) -> str:
    """The pinned package whose name begins like this."""
    return next(name for name in PINNED["npm"] if name.startswith(start))


@cache
def unpacked(start: str) -> Path:
    """The folder of a pinned npm package, unpacked."""
    archive = npm_file(npm_name(start))
    folder = archive.with_suffix("")
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=SOURCES) as scratch, tarfile.open(archive) as packed:
            packed.extractall(scratch, filter="data")
            (Path(scratch) / "package").rename(folder)
    return folder


def member(start: str, path: str) -> bytes | None:
    """One file of a pinned npm package; None where it has no such file."""
    file = unpacked(start) / path
    return file.read_bytes() if file.exists() else None


@cache
def emoji() -> dict[str, dict]:
    """What is known of every emoji, by short name such as `fire_engine`."""
    entries = json.loads(member("emoji-datasource-twitter", "emoji.json") or b"[]")
    return {entry["short_name"]: entry for entry in entries}


def artwork(name: str, side: int) -> list[Image.Image]:
    """An emoji in every style that has it: RGBA (side, side)."""
    entry = emoji()[name]
    title = (entry["name"] or name).lower()
    slugs = (FLUENT.get(name), title.replace(" ", "-"), name.replace("_", "-"))
    found = []
    for style in ("twitter", "google"):
        data = member(f"emoji-datasource-{style}", f"img/{style}/64/{entry['image']}")
        found.append(Image.open(io.BytesIO(data)).convert("RGBA") if data else None)
    for style in ("flat", "modern"):
        datas = (member("fluentui-emoji", f"icons/{style}/{slug}.svg") for slug in slugs if slug)
        data = next((data for data in datas if data), None)
        found.append(rasterised(data) if data else None)
    return [image.resize((side, side), Image.Resampling.LANCZOS) for image in found if image]


def rasterised(svg: bytes) -> Image.Image:
    """A drawing of 32 units as RGBA (128, 128)."""
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg.decode(), width=128, height=128))
    return Image.open(io.BytesIO(png)).convert("RGBA")


def typefaces(size: int) -> Iterator[tuple[str, int, ImageFont.FreeTypeFont]]:
    """Family, weight and font of every pinned typeface, in two weights where there are two."""
    for name in PINNED["npm"]:
        if not name.startswith("@fontsource/"):
            continue
        family = name.split("/")[1].split("@")[0]
        for weight in (400, 700):
            data = member(f"@fontsource/{family}@", f"files/{family}-latin-{weight}-normal.woff")
            if data:
                yield family, weight, ImageFont.truetype(io.BytesIO(data), size)


@cache
def fashion() -> tuple[np.ndarray, np.ndarray]:
    """Fashion-MNIST's training images (60000, 28, 28) uint8, and their labels (60000,)."""
    folder = next((SOURCES / "dataset-fashion-mnist").rglob("train-images-idx3-ubyte.gz")).parent
    images = gzip.decompress((folder / "train-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / "train-labels-idx1-ubyte.gz").read_bytes())
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8, offset=8)
