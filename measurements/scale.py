"""What `acclimate fit` needs for a million images whose features are there: until its first step, in memory, a step.

    python measurements/scale.py [--quick] [--folder DIR] [--table docs/results/scale.md]

Each case makes its data first: class folders of empty files, and a cache that holds made rows for them and the note
that none of them is broken, as an earlier run would have left it; or vectors in two .npz files. Then `runs.fit.fit`
runs in a process of its own, whose screen notes the moment of the first step. A backbone with random weights is loaded
and recognised by its weights, as in any run, but nothing is left for it to compute.

A case is compared with a small one, which stands for an empty run. The two processes take turns block by block, in an
order that is reversed every round, and each ratio is that of two blocks of one round, so that whatever else the machine
does falls on both. Memory is read from /proc, so this runs on Linux alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import timm
import torch
from safetensors.torch import save_file

from acclimate.cache.content import Content
from acclimate.cache.identity import file_paths, identities
from acclimate.cache.rows import Array
from acclimate.cache.store import Store
from acclimate.data.domain import Domain
from acclimate.data.read import read_source, read_target
from acclimate.errors import AcclimateError
from acclimate.files import cache_folder, write_whole
from acclimate.machine import keep_freed_memory
from acclimate.methods import registry
from acclimate.model import Model
from acclimate.networks.backbone import weights_fingerprint
from acclimate.networks.backbones import load_backbone
from acclimate.progress import Meter
from acclimate.runs import fit, prepare
from acclimate.screen import Screen
from acclimate.settings import Recipe, Settings
from speed import processor_name, put_out

CLASSES, VECTOR, MAP = 12, (2048,), (1280, 7, 7)  # VisDA-2017's classes, ResNet-50's vectors, EfficientNet-Lite's maps
SMALL = (2000, 2000)
VISDA = (152_397, 55_388)
MILLION = (600_000, 400_000)
MAPS = (30_000, 20_000)
START_AIM, MEMORY_AIM, STEP_AIM = 5.0, 1.5, 1.05
BLOCK = 2**25  # bytes of made rows at once
WARM = 10  # steps before the first block
EVERY = 0.02  # seconds between two looks at a process's memory
Kind = Literal["vectors", "maps", "npz"]


class Case(NamedTuple):
    """A pair of domains.

    Attributes:
        name: In the table.
        kind: Vectors or maps in the cache, or vectors in an .npz.
        source: Images of the source.
        target: Images of the target.
        kill: Whether the process that fills the cache is killed before it is done with it.
    """

    name: str
    kind: Kind
    source: int
    target: int
    kill: bool = False

    @property
    def row(self) -> tuple[int, ...]:
        """The shape of what is kept of an image."""
        return MAP if self.kind == "maps" else VECTOR

    @property
    def finish(self) -> bool:
        """Whether the run goes on to its predictions, which take minutes on maps."""
        return self.kind != "maps"

    @property
    def size(self) -> float:
        """What the rows of both domains take, in GB."""
        each = np.dtype(np.float32 if self.kind == "npz" else np.float16).itemsize
        return (self.source + self.target) * int(np.prod(self.row)) * each / 1e9


class Plan(NamedTuple):
    """How much is measured.

    Attributes:
        rounds: Blocks a side.
        block: Steps a block.
        starts: How often a case is started.
    """

    rounds: int
    block: int
    starts: int

    @property
    def steps(self) -> int:
        """The steps of a run."""
        return WARM + self.rounds * self.block


# --- the data ----------------------------------------------------------------------------------------------------


def settings(case: Case, folder: Path, steps: int) -> Settings:
    """What is run on a case."""
    ending = ".npz" if case.kind == "npz" else ""
    vectors = case.kind == "vectors"
    return Settings(
        source=str(folder / f"source{ending}"),
        target=str(folder / f"target{ending}"),
        method="tada" if case.kind == "maps" else "wemnet",
        options={} if case.kind == "maps" else {"w_d": "linear"},
        backbone="resnet50" if vectors else "efficientnet_lite0",
        weights=str(folder.parent / "resnet50.safetensors") if vectors else None,
        device="cpu",
        tune="head",
        recipe=Recipe(steps=steps),
        checkpoint_seconds=1e9,  # steps are timed
    )


def make(case: Case, folder: Path) -> None:
    """Make a case's data in a new folder."""
    folder.mkdir()
    for seed, (name, count) in enumerate((("source", case.source), ("target", case.target))):
        if case.kind == "npz":
            rows = np.concatenate([*made_rows(case, count, seed)])[:, 0]
            np.savez(folder / f"{name}.npz", x=rows, y=np.arange(count) % CLASSES)
        else:
            make_files(folder / name, count)
    if case.kind != "npz":
        fill(case, folder)


def make_files(folder: Path, count: int) -> None:
    """Class folders of empty files."""
    for k in range(CLASSES):
        (folder / f"class{k:02}").mkdir(parents=True)
    for i in range(count):
        os.mknod(f"{folder}/class{i % CLASSES:02}/image{i:07}.jpg")  # in a quarter of the time of Path.touch


def made_rows(case: Case, count: int, seed: int) -> Iterator[Array]:
    """Noise, in blocks (B, 1, ...): each is a block of noise and a row of noise."""
    rng = np.random.default_rng(seed)
    at_once = BLOCK // (4 * int(np.prod(case.row)))
    noise = rng.standard_normal((min(at_once, count), 1, *case.row), dtype=np.float32)
    for start in range(0, count, at_once):
        block: npt.NDArray[np.float32] = noise[: count - start] + rng.standard_normal(case.row, dtype=np.float32)
        yield block if case.kind == "npz" else block.astype(np.float16)


def fill(case: Case, folder: Path) -> None:
    """Put rows for all files into the cache, and note that no file is broken."""
    source, target = read_source(folder / "source"), read_target(folder / "target")
    for domain in (source.domain, target):
        write_whole(cache_folder() / "broken" / f"{domain.fingerprint()}.json", b"[]")
    made = settings(case, folder, steps=1)
    backbone = load_backbone(made.backbone, weights=Path(made.weights) if made.weights else None)
    domains, device = (source.domain, target), torch.device("cpu")
    spec = prepare.resolve(made, registry.find(made.method), source.classes, domains, backbone, device)
    model = Model(spec, backbone)
    assert model.frozen is not None
    content = Content(
        backbone=made.backbone,
        weights=weights_fingerprint(model.frozen),
        level=model.method.net.level,
        tune=model.spec.tune,
        preprocess=backbone.preprocess,
        bf16=model.spec.bf16,
        precision=made.cache_precision,
    )
    store = Store(content.folder)
    append(store, content, source.domain, made_rows(case, case.source, seed=0))
    append(store, content, target, made_rows(case, case.target, seed=1), kill=case.kill)


def append(store: Store, content: Content, domain: Domain, rows: Iterator[Array], *, kill: bool = False) -> None:
    """Write the rows of a domain; `kill` ends the process before it notes that they are whole."""
    wanted, start = identities(domain), 0
    with store.writing(content) as writer:
        for block in rows:
            if start == 0:
                writer.reserve(len(domain), block)
            part = np.arange(start, start + len(block))
            writer.append(wanted[part], file_paths(domain, part), block)
            start += len(block)
        if kill:
            os.kill(os.getpid(), signal.SIGKILL)


# --- a run in a process of its own -------------------------------------------------------------------------------


class Clock(NamedTuple):
    """Seconds: of the clock on the wall, which all processes share, and of the processor's time for this one."""

    wall: float
    processor: float

    def since(self, before: Clock) -> Clock:
        """What passed."""
        return Clock(self.wall - before.wall, self.processor - before.processor)


def now() -> Clock:
    """Both clocks."""
    return Clock(time.monotonic(), time.process_time())


class Watched(Screen):
    """A screen that tells the other process about the training, and lets it decide when the next block begins."""

    def __init__(self, block: int, imported: Clock) -> None:
        super().__init__(quiet=True)
        self.block = block
        self.imported = imported

    @contextmanager
    def progress(self, description: str, total: int, start: int = 0) -> Iterator[Meter]:
        """Stops the training after its first step and after each block."""
        with super().progress(description, total, start) as meter:
            yield _Turns(self) if description.startswith("Training") else meter


class _Turns:
    """Waits for its turn after the first step, after the warm-up and after each block."""

    def __init__(self, screen: Watched) -> None:
        self.screen = screen
        self.began = now()

    def update(self, done: int, terms: object = None) -> None:
        """Tell what the block took, and wait."""
        moment = now()
        if done == 1:
            tell({"imported": self.screen.imported, "first": moment})
        elif done >= WARM and (done - WARM) % self.screen.block == 0:
            tell({"began": self.began, "ended": moment})
        else:
            return
        if not sys.stdin.readline():  # nobody wants more of it
            os._exit(0)
        self.began = now()


def tell(message: dict[str, Clock]) -> None:
    """Write a line to the other process."""
    print(json.dumps(message), flush=True)


def run(case: Case, folder: Path, plan: Plan, out: Path, imported: Clock) -> None:
    """Fit on a case's data, in turns."""
    fit.fit(settings(case, folder, plan.steps), out, Watched(plan.block, imported))


class Memory(NamedTuple):
    """GB that a process has in memory.

    Attributes:
        own: Its own pages, which only it can give back.
        mapped: Pages of mapped files, which the system drops when it needs the room.
    """

    own: float
    mapped: float


class Process:
    """One run of `acclimate fit`, which waits after its first step and after each block.

    Attributes:
        peak: The most memory that was seen so far, own and mapped each at its own time.
    """

    def __init__(self, case: Case, folder: Path, plan: Plan, out: Path) -> None:
        self.began = Clock(time.monotonic(), 0.0)
        self._popen = subprocess.Popen(
            command("run", case, folder, plan, out), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.peak = Memory(0, 0)
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while self._popen.poll() is None:
            seen = memory(self._popen.pid)
            self.peak = Memory(max(self.peak.own, seen.own), max(self.peak.mapped, seen.mapped))
            time.sleep(EVERY)

    def hear(self) -> dict[str, Clock]:
        """What the process tells."""
        line = _pipe(self._popen.stdout).readline()
        if not line:
            raise SystemExit("A run ended too early; its message is above.")
        return {name: Clock(*clocks) for name, clocks in json.loads(line).items()}

    def go_on(self) -> None:
        """Let it take its next block."""
        _pipe(self._popen.stdin).write("\n")
        _pipe(self._popen.stdin).flush()

    def block(self) -> Clock:
        """What the next block takes."""
        self.go_on()
        told = self.hear()
        return told["ended"].since(told["began"])

    def end(self, *, finish: bool) -> None:
        """Let it finish its run, or leave it."""
        if finish:
            self.go_on()
        _pipe(self._popen.stdin).close()
        if self._popen.wait():
            raise SystemExit("A run failed; its message is above.")


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def memory(pid: int) -> Memory:
    """What a process has in memory now; zeros when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return Memory(0, 0)
    entries = dict(line.split(":", 1) for line in lines if line.startswith("Rss"))
    own, mapped = (int(entries.get(name, "0 kB").split()[0]) * 1024 / 1e9 for name in ("RssAnon", "RssFile"))
    return Memory(own, mapped)


def command(what: str, case: Case, folder: Path, plan: Plan, out: Path) -> list[str]:
    """This program again, as another process that does a part of the work."""
    return [sys.executable, __file__, "--part", json.dumps([what, case, str(folder), plan, str(out)])]


def part(text: str, imported: Clock) -> None:
    """Do what `command` asks for."""
    what, case, folder, plan, out = json.loads(text)
    if what == "make":
        make(Case(*case), Path(folder))
        return
    try:
        run(Case(*case), Path(folder), Plan(*plan), Path(out), imported)
    except AcclimateError as error:
        raise SystemExit(str(error)) from error


# --- measurement -------------------------------------------------------------------------------------------------


class Start(NamedTuple):
    """What passed until the first step was made, with and without the imports, and the memory until then."""

    whole: Clock
    after_imports: Clock
    memory: Memory


class Result(NamedTuple):
    """What was measured of a case.

    Attributes:
        case: The case.
        starts: Every start.
        steps: (rounds, 2) milliseconds a step, of both clocks.
        peak: The most memory of the whole run, predictions included if the case is finished.
        killed: The start after the process that filled the cache was killed.
    """

    case: Case
    starts: list[Start]
    steps: npt.NDArray[np.float64]
    peak: Memory
    killed: Start | None = None


def begin(case: Case, folder: Path, plan: Plan, out: Path) -> tuple[Process, Start]:
    """Start a run and wait for its first step."""
    process = Process(case, folder, plan, out)
    told = process.hear()
    first = told["first"]
    return process, Start(first.since(process.began), first.since(told["imported"]), process.peak)


def start(case: Case, folder: Path, plan: Plan) -> Start:
    """A start alone."""
    process, measured = begin(case, folder, plan, folder / "started")
    process.end(finish=False)
    shutil.rmtree(folder / "started")
    return measured


def make_apart(case: Case, folder: Path, plan: Plan) -> None:
    """Make a case's data in a process of its own."""
    code = subprocess.run(command("make", case, folder, plan, folder), check=False).returncode
    if code != (-signal.SIGKILL if case.kill else 0):
        raise SystemExit("The data could not be made; the message is above.")


def measure(small: Case, large: Case, folder: Path, plan: Plan) -> tuple[Result, Result]:
    """Both cases, in turns; the data of both are deleted at the end."""
    os.environ["ACCLIMATE_CACHE"] = str(folder / "cache")
    folders = {small: folder / "small", large: folder / "large"}
    for case, place in folders.items():
        make_apart(case, place, plan)
    killed = start(large, folders[large], plan) if large.kill else None
    starts: dict[Case, list[Start]] = {case: [] for case in folders}
    for number in range(plan.starts - 1):
        for case in in_turn(folders, number):
            starts[case].append(start(case, folders[case], plan))
    processes = {}
    for case, place in folders.items():
        processes[case], measured = begin(case, place, plan, place / "out")
        starts[case].append(measured)
    blocks = in_blocks(processes, plan)
    for case, process in processes.items():
        process.end(finish=case.finish)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    for place in folders.values():
        shutil.rmtree(place)
    small_result, large_result = (
        Result(case, starts[case], 1000 / plan.block * np.array(blocks[case]), processes[case].peak) for case in folders
    )
    return small_result, large_result._replace(killed=killed)


def in_blocks(processes: dict[Case, Process], plan: Plan) -> dict[Case, list[Clock]]:
    """What each block takes, of processes that take turns."""
    blocks: dict[Case, list[Clock]] = {case: [] for case in processes}
    for process in processes.values():
        process.block()  # the warm-up
    for number in range(plan.rounds):
        for case in in_turn(processes, number):
            blocks[case].append(processes[case].block())
    return blocks


def in_turn(cases: dict[Case, Any], number: int) -> list[Case]:
    """The cases in the order of this round."""
    return list(cases)[:: -1 if number % 2 else 1]


# --- the table ---------------------------------------------------------------------------------------------------


def spread(values: npt.ArrayLike, digits: int = 1) -> str:
    """The median, and the range of the middle half."""
    low, middle, high = np.quantile(np.asarray(values, dtype=np.float64), [0.25, 0.5, 0.75])
    return f"**{middle:.{digits}f}** ({low:.{digits}f} to {high:.{digits}f})"


def times_line(this: Result, small: Result) -> str:
    """A line of the table of times."""
    case = this.case
    cells = [
        f"{case.name}: {case.source:,} + {case.target:,}",
        f"{case.size:.2f}",
        spread([s.after_imports.wall for s in this.starts]),
        f"{np.median([s.after_imports.processor for s in this.starts]):.1f}",
        spread([s.whole.wall for s in this.starts]),
        f"{np.median(this.steps[:, 0]):.3g}",
        *(("", "") if this is small else (spread(this.steps[:, i] / small.steps[:, i], 3) for i in range(2))),
    ]
    return f"| {' | '.join(cells)} |"


def memory_line(this: Result, small: Result) -> str:
    """A line of the table of memory: beyond the small case's, but for its own line."""
    began, base = (max((s.memory for s in result.starts), key=lambda m: m.own) for result in (this, small))
    pairs = [(began, base), (this.peak, small.peak)]
    if this is small:
        cells = [f"{gb:.2f}" for memory, _ in pairs for gb in memory]
    else:
        cells = [f"{gb - other:+.2f}" for pair in pairs for gb, other in zip(*pair, strict=True)]
    return f"| {this.case.name} | {' | '.join(cells)} |"


def tables(results: list[tuple[Result, Result]]) -> str:
    """Markdown: the times and the memory of every case, each small one before its large one."""
    pairs = [(this, small) for small, large in results for this in (small, large)]
    lines = [
        "| case: source + target | GB | start-up, s | of it processor | with the imports, s | a step, ms "
        "| ratio to the small case | of processor time |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        *(times_line(*pair) for pair in pairs),
        f"| *aim* | | *≤ {START_AIM:g}* | | | | *≤ {STEP_AIM}* | |",
        "",
        "| case | own, until the first step | mapped | own, whole run | mapped |",
        "|---|---:|---:|---:|---:|",
        *(memory_line(*pair) for pair in pairs),
        f"| *aim* | *≤ +{MEMORY_AIM}* | | *≤ +{MEMORY_AIM}* | |",
    ]
    return "\n".join(lines)


def killed_line(this: Result) -> str:
    """A sentence: the start after a kill."""
    assert this.killed is not None
    clean = np.median([s.after_imports.processor for s in this.starts])
    return (
        f'The process that filled the cache of "{this.case.name}" was killed (SIGKILL) before it was done with it. The '
        "first start after that reads all rows and compares them with their checksums, and takes "
        f"{this.killed.after_imports.wall:.1f} s, "
        f"{this.killed.after_imports.processor:.1f} of them the processor's, in place of {clean:.1f}. Once."
    )


def describe(plan: Plan, load: float) -> str:
    """Where and how the figures were measured."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    return "\n".join(
        [
            f"- Machine: {processor_name()}, {os.cpu_count()} cores, {memory:.0f} GB; PyTorch {torch.__version__} on "
            f"{torch.get_num_threads()} of them. Load average before the run: {load:.1f}, so "
            + ("other work shared the machine." if load > 0.5 else "the machine was idle."),
            f"- {plan.starts} starts a case; {plan.rounds} rounds of {plan.block} steps a side, 32 + 32 images a step. "
            "The rows had just been written, so most of them were in the system's memory.",
            "- Start-ups and ratios (round by round) are medians, with the range of the middle half. Memory is the "
            f"peak, seen every {1000 * EVERY:.0f} ms.",
        ]
    )


def page(folder: Path, plan: Plan, pairs: list[tuple[Case, Case]]) -> str:
    """All that is measured, as Markdown."""
    load = os.getloadavg()[0]
    save_file(timm.create_model("resnet50", pretrained=False).state_dict(), folder / "resnet50.safetensors")
    results = []
    for small, large in pairs:
        results.append(measure(small, large, folder, plan))
        for result in results[-1]:
            print(times_line(result, results[-1][0]), memory_line(result, results[-1][0]), sep="\n", flush=True)
    return "\n\n".join(
        [
            "# Scale",
            "`acclimate fit` on data of growing size, whose features were computed before, against a small case that "
            "stands for an empty run. Made by `python measurements/scale.py --table docs/results/scale.md`.",
            "Start-up lasts from the end of the imports until the first training step has been made: reading the "
            "folders or the arrays, recognising the images and the run, loading the backbone, finding the rows. GB is "
            "what the rows take on the disk. Vectors have 2,048 numbers and the method is WEMNet; maps are "
            "1,280 x 7 x 7 and the method is TADA. Both lie in the cache in fp16, and the images are files in class "
            "folders; in an .npz the vectors are fp32.",
            tables(results),
            "Memory is in GB; the line of a large case says what comes on top of the small case before it. *Own* are "
            "the process's pages; *mapped* are pages of the memory-mapped rows (and of libraries), which the system "
            "drops when it needs the room. The whole run includes the predictions for the target and the domain error "
            "of all images, but for maps, where it ends with the last step.",
            *(killed_line(large) for _, large in results if large.killed),
            describe(plan, load),
        ]
    )


def cases(*, quick: bool) -> list[tuple[Case, Case]]:
    """The small and the large case of each comparison."""

    def scaled(counts: tuple[int, int]) -> tuple[int, int]:
        return (counts[0] // 100, counts[1] // 100) if quick else counts

    small = (200, 200) if quick else SMALL
    return [
        (Case("vectors, small", "vectors", *small), Case("vectors, VisDA-2017", "vectors", *scaled(VISDA), kill=True)),
        (Case("vectors, small", "vectors", *small), Case("vectors, a million", "vectors", *scaled(MILLION))),
        (Case("maps, small", "maps", *small), Case("maps", "maps", *scaled(MAPS))),
        (Case(".npz, small", "npz", *small), Case(".npz, VisDA-2017", "npz", *scaled(VISDA))),
        (Case(".npz, small", "npz", *small), Case(".npz, a million", "npz", *scaled(MILLION))),
    ]


def main() -> None:
    """Measure, and print or write the page."""
    imported = now()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="blocks a side")
    parser.add_argument("--starts", type=int, default=3, help="starts of each case")
    parser.add_argument("--folder", type=Path, help="where up to 10 GB are kept meanwhile; default: a temporary folder")
    parser.add_argument("--cases", nargs="*", help="comparisons whose large case's name contains one of these; all")
    parser.add_argument("--quick", action="store_true", help="try everything out with a hundredth of the images")
    parser.add_argument("--table", type=Path, help="write the page here too")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as every command does
    if args.part:
        part(args.part, imported)
        return
    plan = Plan(rounds=2, block=5, starts=2) if args.quick else Plan(args.rounds, block=10, starts=args.starts)
    chosen = [pair for pair in cases(quick=args.quick) if not args.cases or any(c in pair[1].name for c in args.cases)]
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        text = page(Path(folder), plan, chosen)
    put_out(text, args.table)


if __name__ == "__main__":
    main()
