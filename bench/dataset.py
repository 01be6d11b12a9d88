"""Compares `prepare` with its lower bound (decoding alone) and with other tools, on one folder, in interleaved runs.

    python -m bench.dataset --images ../shared/data/photos_demo.zip ../shared/data/stamps_demo.zip --copies 6
    python -m bench.dataset --folder IMAGES --camera 100
    python -m bench.dataset … --peers PEERS_PYTHON        (an interpreter with imagehash, imagededup, cleanvision)

`--copies` is the number of cropped, re-encoded copies of each image, so that a few real images make a large folder;
`--folder` has different images already. `--camera` adds a table for so many of them, enlarged to JPEGs of 12 Mpx with
grain. Each entry runs in its own process. The table shows images per second on all cores, and per CPU second.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from PIL import Image, ImageOps

from trainer.dataset.images.decode_server import start_server

_PEERS = {
    "imagehash pHash": """
import sys, imagehash
from pathlib import Path
from PIL import Image
for path in sorted(Path(sys.argv[1]).iterdir()):
    imagehash.phash(Image.open(path))
""",
    # Its hashing needs no torchvision, but its CNN part imports it.
    "imagededup pHash": """
import sys, types, unittest.mock
for name in ("torchvision", "torchvision.models", "torchvision.models.vision_transformer", "torchvision.transforms"):
    sys.modules[name] = unittest.mock.MagicMock()
from imagededup.methods import PHash
if __name__ == "__main__":
    PHash(verbose=False).find_duplicates(image_dir=sys.argv[1])
""",
    "cleanvision, all checks": """
import sys, contextlib, os
from cleanvision import Imagelab
if __name__ == "__main__":
    with contextlib.redirect_stdout(open(os.devnull, "w")):
        Imagelab(data_path=sys.argv[1]).find_issues(verbose=False)
""",
}


#: Area of an image of `--camera`, px, and standard deviation of its grain, levels: files of 1 to 5 MB.
_CAMERA_PIXELS, _GRAIN = 12_000_000, 3.0
#: prctl(2).
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Measures of one run of an entry."""

    wall_s: float
    cpu_s: float
    peak_mib: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs="+", type=Path, default=[])
    parser.add_argument("--copies", type=int, default=6)
    parser.add_argument("--side", type=int, help="longest side of the copies, px (default: the original size)")
    parser.add_argument("--folder", type=Path, help="a folder of images to prepare, in place of copies")
    parser.add_argument("--camera", type=int, default=0, help="then, so many images as large as a camera's")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", type=Path, help="Python that has imagehash, imagededup and cleanvision")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--enlarge", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--entry", nargs=3, metavar=("NAME", "FOLDER", "OUT"), help="run one entry, untimed")
    options = parser.parse_args()
    if options.entry:
        name, folder, out = options.entry
        _ENTRIES[name](Path(folder), Path(out))
        return
    if options.make:
        _make_folder(options.images, options.make, options.copies, options.side)
        return
    if options.enlarge:
        _enlarge(options.folder, options.enlarge, options.camera)
        return
    _adopt_orphans()
    with tempfile.TemporaryDirectory() as work:
        folder, camera = options.folder or Path(work) / "images", Path(work) / "camera"
        if options.folder is None:
            _make("--make", work)
        _compare(folder, Path(work) / "small", options.rounds, options.peers)
        if options.camera:
            _make("--folder", str(folder), "--enlarge", str(camera))
            _compare(camera, Path(work) / "large", options.rounds, options.peers)


def _make(*arguments: str) -> None:
    """Make images in a child process, like the entries: its memory and CPU time do not count here."""
    subprocess.run([sys.executable, "-m", "bench.dataset", *sys.argv[1:], *arguments], check=True)
    _wait_for_all()


def _compare(folder: Path, work: Path, rounds: int, peers: Path | None) -> None:
    count = len(list(folder.iterdir()))
    megapixels = statistics.fmean(_megapixels(path) for path in folder.iterdir())
    sys.stdout.write(f"{count} images of {megapixels:.2f} Mpx on average, {_cores()} cores\n")
    runs: dict[str, list[Timed]] = {}
    for number in range(rounds):
        for name, command in _commands(folder, work / str(number), peers).items():
            runs.setdefault(name, []).append(_timed(command))
    limit = min(timed.cpu_s for timed in runs[_LIMIT])
    sys.stdout.write(f"{'':52}{'per s':>9}{'per CPU-s':>11}{'of limit':>10}{'peak MiB':>10}\n")
    for name, timed in runs.items():
        wall, cpu = min(one.wall_s for one in timed), min(one.cpu_s for one in timed)
        peak = max(one.peak_mib for one in timed)
        sys.stdout.write(f"{name:52}{count / wall:9.0f}{count / cpu:11.0f}{limit / cpu:10.2f}{peak:10.0f}\n")


def _commands(folder: Path, out: Path, peers: Path | None) -> dict[str, list[str]]:
    # Not `-m`: each process that decodes would import this module as its own `__main__` again.
    run = [sys.executable, "-c", "from bench.dataset import main; main()", "--entry"]
    ours = {name: [*run, name, str(folder), str(out)] for name in _ENTRIES}
    ours[_WHOLE] = [sys.executable, "-m", "trainer", "prepare", str(folder), "--out", str(out / "drawn")]
    if peers is None:
        return ours
    return ours | {name: [str(peers), "-W", "ignore", "-c", code, str(folder)] for name, code in _PEERS.items()}


def _prepare(sources: Sequence[Path], out: Path, earlier: Sequence[Path] = ()) -> None:
    """Prepare as the command does, which loads its libraries while the server of the decoders loads its own."""
    start_server()
    from trainer.dataset.preparing.prepare import prepare

    prepare(sources, out, earlier=earlier)


def _with_five_more(folder: Path, out: Path) -> None:
    more = out / "more"
    more.mkdir()
    for path in sorted(folder.iterdir())[:5]:
        with Image.open(path) as opened:
            opened.convert("RGB").rotate(3).save(more / f"more_{path.stem}.jpg", quality=92)
    _prepare([folder, more], out / "grown", earlier=[out / "plain"])


def _adopt_orphans() -> None:
    """Become the parent of orphaned grandchildren (Linux), so that their CPU time counts too."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _timed(command: list[str]) -> Timed:
    """Run a command and measure it with all processes that it starts; start-up is included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    peak = _Peak()
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        peak.update(process.pid)
        time.sleep(0.05)
    wall = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"{command} ended with status {process.returncode}")
    _wait_for_all()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Timed(wall_s=wall, cpu_s=cpu, peak_mib=peak.bytes / 2**20)


def _wait_for_all() -> None:
    with suppress(ChildProcessError):
        while True:
            os.wait()


class _Peak:
    """Peak memory of a process and its descendants (resident set size; proportional set size needs root)."""

    def __init__(self) -> None:
        self.bytes = 0

    def update(self, pid: int) -> None:
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            members = [process, *process.children(recursive=True)]
            self.bytes = max(self.bytes, sum(member.memory_info().rss for member in members))


def _decode_alone(folder: Path, *, is_full: bool) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.dataset", "trainer.dataset.images.decoding"])
    with ProcessPoolExecutor(_cores(), mp_context=context) as pool:
        for _ in pool.map(_decode_fully if is_full else _decode_for_checks, sorted(folder.iterdir()), chunksize=8):
            pass


def _decode_fully(path: Path) -> None:
    with Image.open(path) as opened:
        opened.convert("RGB")


def _decode_for_checks(path: Path) -> None:
    from trainer.dataset.images.decoding import decode
    from trainer.dataset.input_files import Limits

    decode(path.read_bytes(), Limits())


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _megapixels(path: Path) -> float:
    with Image.open(path) as opened:
        return opened.width * opened.height / 1e6


def _make_folder(sources: Iterable[Path], work: Path, copies: int, side: int | None) -> None:
    """Fill `work/images` with cropped, re-encoded copies of the images in the sources."""
    from trainer.dataset.preparing.prepare import prepare

    prepared = work / "sources"
    report = prepare(list(sources), prepared)
    folder = work / "images"
    folder.mkdir()
    order = random.Random(0)
    for number, image in enumerate(report.images, start=1):
        if image.path is None:
            continue
        with Image.open(prepared / image.path) as opened:
            original = opened.convert("RGB")
        if side is not None:
            original = ImageOps.contain(original, (side, side), Image.Resampling.LANCZOS)
        for copy in range(copies):
            width, height = (round(length * order.uniform(0.6, 0.95)) for length in original.size)
            left, top = order.randint(0, original.width - width), order.randint(0, original.height - height)
            crop = original.crop((left, top, left + width, top + height))
            crop.save(folder / f"{number:04}_{copy}.jpg", quality=90)


def _enlarge(folder: Path, out: Path, count: int) -> None:
    """Fill `out` with images of the folder, evenly chosen, as JPEGs of 12 Mpx."""
    out.mkdir()
    paths = sorted(folder.iterdir())
    chosen = paths[:: max(1, len(paths) // count)][:count]
    with ProcessPoolExecutor(_cores()) as pool:
        for _ in pool.map(_enlarge_one, chosen, [out / f"{path.stem}.jpg" for path in chosen]):
            pass


def _enlarge_one(path: Path, out: Path) -> None:
    with Image.open(path) as opened:
        scale = (_CAMERA_PIXELS / (opened.width * opened.height)) ** 0.5
        size = round(opened.width * scale), round(opened.height * scale)
        large = np.asarray(opened.convert("RGB").resize(size, Image.Resampling.BICUBIC))
    grain = np.random.default_rng(0).normal(0, _GRAIN, (256, 256)).astype(np.int16)
    rows, columns = -(-size[1] // 256), -(-size[0] // 256)
    everywhere = np.tile(grain, (rows, columns))[: size[1], : size[0], None]
    Image.fromarray(np.clip(large + everywhere, 0, 255).astype(np.uint8)).save(out, quality=92)


_LIMIT, _WHOLE = "decoding alone, at the size for the checks", "the command, with sheets and pages"
_ENTRIES: dict[str, Callable[[Path, Path], object]] = {
    _LIMIT: lambda folder, out: _decode_alone(folder, is_full=False),
    "decoding alone, Pillow, every pixel": lambda folder, out: _decode_alone(folder, is_full=True),
    "prepare, all checks": lambda folder, out: _prepare([folder], out / "plain"),
    "prepare the same again": lambda folder, out: _prepare([folder], out / "plain"),
    "prepare with five more images": lambda folder, out: _with_five_more(folder, out),
}


if __name__ == "__main__":
    main()
