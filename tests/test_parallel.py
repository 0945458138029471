"""Several processes that train together: two of them, on this machine, connected by gloo."""

from __future__ import annotations

import hashlib
import json
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import forks
from acclimate import parallel
from acclimate.errors import DataError, OptionError
from acclimate.methods import registry
from acclimate.methods.base import Method
from acclimate.methods.options import options
from acclimate.parallel import Replicas, World
from acclimate.progress import NOBODY
from acclimate.runs.fit import fit
from acclimate.settings import Recipe, Settings
from acclimate.testing import tiny_method, tiny_pair
from acclimate.training import train
from tiny import acclimate, pictures, refused, succeeds, trained_alone, vectors

SMALL = {"hidden": 32, "image_size": 16, "width": 4, "noise": 8}  # of the options that make networks large

OTHERWISE = {  # than accumulating in one process, and why
    "adda": "its second stage reads BatchNorm's statistics",
    "adr": "dropout",
    "crst": "its pseudo-labels depend on BatchNorm's statistics",
    "gta": "noise",
    "mada": "dropout",
    "mcd": "dropout",
    "mstn": "its centroids move once a step, not once a batch",
    "simnet": "so do its prototypes",
}


def pair(code: str, *args: str | Path, **more: str) -> list[tuple[int, str]]:
    """The exit codes of two processes that run a program together, and what each printed, errors included."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    together = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo", **more}
    started = [forks.Forked("import os; os.dup2(1, 2)\n" + code, *args, RANK=str(rank), **together) for rank in (0, 1)]
    return [process.wait() for process in started]


def trained(name: str, accumulate: int, steps: int = 3) -> Method:
    """A tiny model of a method."""
    cls = registry.load(name)
    method = tiny_method(cls, **{option: value for option, value in SMALL.items() if option in options(name)})
    for _ in train(method, tiny_pair(cls), Recipe.of(cls, steps=steps, lr=0.01, accumulate=accumulate)):
        pass
    return method


def digests(method: Method) -> list[str]:
    """Of the bits of its parameters, and of all its state."""
    return [_digest(dict(method.named_parameters())), _digest(method.state_dict())]


def _digest(tensors: dict[str, Any]) -> str:
    content = (
        f"{name}{tuple(t.shape)}".encode() + t.detach().contiguous().numpy().tobytes() for name, t in tensors.items()
    )
    return hashlib.sha256(b"".join(content)).hexdigest()


EVERY_METHOD = """
import json, sys
import torch
sys.path[:0] = sys.argv[1:]
import test_parallel
from acclimate import parallel

world = parallel.join()
found = {}
with world.together(torch.device("cpu")):
    for name in test_parallel.trained_alone():
        found[name] = test_parallel.digests(test_parallel.trained(name, world.size))
print(json.dumps(found))
"""


def test_two_processes_stay_equal_and_take_the_steps_that_one_takes_with_accumulated_batches() -> None:
    (code, first), (other_code, second) = pair(EVERY_METHOD, Path(__file__).parent)
    assert (code, other_code) == (0, 0), first + second
    assert first == second
    found = json.loads(first)
    assert found.keys() == set(trained_alone())
    for name, (parameters, _) in found.items():
        if name not in OTHERWISE:
            assert parameters == digests(trained(name, 2))[0], name


OWN = """
import os, signal, time
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from acclimate.methods.base import Method, Objective

class Own(Method):
    def __init__(self, net, num_classes):
        super().__init__(net, num_classes)
        self.classifier, self.steps = nn.Linear(net.dim, num_classes), 0

    def step(self, s, t):
        self.steps += 1
        f_s, f_t = self.net.pair(s.x, t.x)
        distance = (f_s.mean(0) - f_t.mean(0)).square().sum()
        if self.steps == 3 and os.environ.get("RANK") == "1":
            if os.environ["HOW"] == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if os.environ["HOW"] == "diverges":
                distance = distance * torch.nan
            if os.environ["HOW"] == "is terminated":
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)
        yield Objective(classification=cross_entropy(self.classifier(f_s), s.y), distance=distance)

    def predict(self, x):
        return self.classifier(self.net(x))
"""

COMMAND = "import sys; sys.argv[0] = 'acclimate'; from acclimate.__main__ import main; main()"


def test_a_run_of_two_processes_ends_with_one_that_fails_and_goes_on_to_the_result_of_one_process(
    tmp_path: Path,
) -> None:
    source, target = pictures(tmp_path / "s"), pictures(tmp_path / "t", ("",), n=12, shade=30)
    (tmp_path / "own.py").write_text(OWN)
    data = ("--source", source, "--target", target, "--backbone", "digits_cnn", "--method", tmp_path / "own.py:Own")
    how = ("--steps", "8", "--batch-size", "4", "--checkpoint-seconds", "0", "--no-report", "--device", "cpu")
    fit = ("fit", *data, *how, "--compare")

    def outcome(how: str, out: str) -> tuple[list[int], list[str]]:
        (code, first), (other_code, second) = pair(COMMAND, *fit, "--out", tmp_path / out, HOW=how)
        assert "Traceback" not in first + second
        return [code, other_code], [line for line in (first + second).splitlines() if line.startswith("Error: ")]

    codes, (sentence,) = outcome("diverges", "b")
    assert codes == [2, 2]
    assert "Training diverged at step 3: distance is not finite" in sentence
    codes, (sentence,) = outcome("is terminated", "b")
    assert codes == [2, 128 + signal.SIGTERM]
    assert sentence.startswith("Error: Terminated, perhaps because another process has ended: the same command")
    codes, (sentence,) = outcome("dies", "b")
    assert codes == [2, -9]
    assert sentence == (
        "Error: One of the 2 processes has failed or ended: the same command goes on from the last checkpoint."
    )
    codes, _ = outcome("", "b")
    assert codes == [0, 0]
    record = json.loads((tmp_path / "b" / "record.json").read_text())
    assert record["resumed_at"] > 2
    assert record["environment"]["processes"] == 2
    assert record["compare"] is not None

    succeeds(*fit, "--accumulate", "2", "--out", tmp_path / "a")
    assert json.loads((tmp_path / "a" / "record.json").read_text())["identity"] == record["identity"]
    one, two = (load_file(tmp_path / out / "model.safetensors") for out in ("a", "b"))
    learned = [name for name in one if "running_" not in name and "num_batches" not in name]
    assert len(learned) > 8
    assert all(torch.equal(one[name], two[name]) for name in learned)


@pytest.fixture
def one_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_world", World(0, 2))


@pytest.mark.usefixtures("one_of_two")
@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        ("dann", "would not train a head faster than one"),
        ("consensus", "side by side in processes of its own"),
    ],
)
def test_what_several_processes_cannot_share_is_refused(method: str, sentence: str, tmp_path: Path) -> None:
    source, target = str(vectors(tmp_path / "s.npz")), str(vectors(tmp_path / "t.npz", shift=1))
    with pytest.raises(OptionError, match=sentence):
        fit(Settings.of(source=source, target=target, method=method), tmp_path / "out", NOBODY)


def test_other_commands_refuse_to_be_run_by_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert refused("methods").startswith("Several processes can only share the work of acclimate fit")
    monkeypatch.setenv("RANK", "1")
    result = acclimate("methods")
    assert (result.exit_code, result.output) == (2, "")


@pytest.mark.usefixtures("one_of_two")
def test_processes_that_see_other_data_than_the_first_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "told", lambda self, message: message.replace("false", "true"))
    source, target = str(vectors(tmp_path / "s.npz")), str(vectors(tmp_path / "t.npz", shift=1))
    with pytest.raises(DataError, match="do not see the same data, or not the same run"):
        fit(Settings.of(source=source, target=target, method="dann"), tmp_path / "out", NOBODY)


def test_a_process_alone_leaves_gradients_buffers_and_random_numbers_as_they_are() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    module(torch.randn(4, 2)).square().sum().backward()
    before = {name: p.grad.clone() for name, p in module.named_parameters()}
    state = torch.get_rng_state()
    replicas = Replicas(module, World())
    replicas.copy_first()
    replicas.seed(0, 5)
    replicas.sum_gradients(list(module.parameters()))
    replicas.average_buffers()
    assert all(torch.equal(p.grad, before[name]) for name, p in module.named_parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_each_process_draws_random_numbers_of_its_own_that_depend_on_the_step_alone() -> None:
    def drawn(rank: int, seed: int, step: int) -> float:
        torch.manual_seed(0)
        Replicas(nn.Identity(), World(rank, 3)).seed(seed, step)
        return float(torch.rand(()))

    places = [(rank, seed, step) for rank in (0, 1, 2) for seed in (0, 1) for step in (0, 1)]
    assert [drawn(*place) for place in places] == (again := [drawn(*place) for place in places])
    assert len(set(again[4:])) == 8
    assert len(set(again[:4])) == 1  # the first process draws on


def test_each_process_takes_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    World(5, 8).take_gpu("auto")
    World(5, 8).take_gpu("cpu")
    World().take_gpu("cuda:1")
    assert taken == [1]
    with pytest.raises(OptionError, match="use --device cuda, not cuda:0"):
        World(5, 8).take_gpu("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(OptionError, match="use --nproc-per-node 2"):
        World(2, 3).take_gpu("cuda")
