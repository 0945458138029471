"""Methods from outside of the package: files and installed packages, and that nobody's code runs by itself."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acclimate import AdaptiveClassifier, outside
from acclimate.bench import workers
from acclimate.bench.grid import grid_of
from acclimate.errors import AcclimateError, DataError, OptionError
from acclimate.methods import registry
from acclimate.methods.base import Method
from acclimate.methods.dann import DANN
from acclimate.methods.options import check_options, describe, options, parse_options
from acclimate.model import Model
from acclimate.runs.fit import fit
from acclimate.screen import Screen
from acclimate.settings import Settings
from acclimate.testing import check_method
from standins import make
from tiny import acclimate, refused, succeeds, vectors

MINE = '''
from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import nn
from torch.nn.functional import cross_entropy

from acclimate.methods.base import Method, Objective

if TYPE_CHECKING:
    from acclimate.networks.network import Network

print("the stranger's code runs")


class Mine(Method):
    """Confident: the target's predictions have a low entropy."""

    def __init__(
        self,
        net: Network,
        num_classes: int,
        *,
        weight: float = 0.1,
        floor: float = -1.0,
        rounds: int = 0,
        norm: Literal["l1", "l2"] | None = None,
    ):
        super().__init__(net, num_classes)
        self.weight = weight
        self.classifier = nn.Linear(net.dim, num_classes)

    def step(self, s, t):
        f_s, f_t = self.net.pair(s.x, t.x)
        p = self.classifier(f_t).softmax(1)
        entropy = -(p * p.clamp(min=1e-8).log()).sum(1).mean()
        yield Objective(supervised=cross_entropy(self.classifier(f_s), s.y), entropy=self.weight * entropy)

    def predict(self, x):
        return self.classifier(self.net(x))
'''
RUNS = "the stranger's code runs"
SMALL = ("--bottleneck", "8", "--batch-size", "6", "--steps", "3")


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "my.py").write_text(MINE)
    return tmp_path / "code" / "my.py"


@pytest.fixture
def data(tmp_path: Path) -> tuple[str | Path, ...]:
    source, target = vectors(tmp_path / "source.npz"), vectors(tmp_path / "target.npz", shift=0.5)
    return "--source", source, "--target", target, *SMALL


@pytest.fixture
def trained(tmp_path: Path, mine: Path, data: tuple[str | Path, ...]) -> Path:
    succeeds("fit", *data, "--method", f"{mine}:Mine", "--out", tmp_path / "run")
    return tmp_path / "run"


def forget() -> None:
    """What a new process would not know: the modules that were made of files."""
    for name in [name for name in sys.modules if name.startswith("acclimate_outside_")]:
        del sys.modules[name]


# --- a stranger's way ----------------------------------------------------------------------------------------------


def test_a_method_from_a_file_is_trained_used_and_goes_on(
    tmp_path: Path, mine: Path, data: tuple[str | Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    check_method(f"{mine}:Mine")
    monkeypatch.chdir(mine.parent)
    command = ("fit", *data, "--out", run, "--set", "weight=0.3", "--set", "floor=-0.5")
    result = succeeds(*command, "--method", "my.py", "--compare")
    assert "Mine" in result.stdout  # the column of the table
    assert str(mine) not in result.stdout
    record = json.loads((run / "record.json").read_text())
    assert record["settings"]["method"] == f"{mine}:Mine"
    assert record["model"]["options"] == {"weight": 0.3, "floor": -0.5}
    monkeypatch.chdir(tmp_path)
    for name in (f"{mine}:Mine", "code/my.py", "code/../code/my.py:Mine"):  # the same run, wherever it is named from
        assert "Mine is finished already" in succeeds(*command, "--method", name).stderr

    again = ("--method", "code/my.py:Mine")
    succeeds("predict", run, data[3], "--out", tmp_path / "p.csv", *again)
    assert (tmp_path / "p.csv").read_bytes() == (run / "predictions.csv").read_bytes()
    scores = json.loads(succeeds("evaluate", run, data[3], "--json", *again).stdout.removeprefix(f"{RUNS}\n"))
    assert scores == record["scores"]


def test_the_report_shows_what_needs_no_model(trained: Path, mine: Path) -> None:
    forget()
    result = succeeds("report", trained)
    page = (trained / "report.html").read_text()
    assert RUNS not in result.stdout
    assert f"Without the model there is no embedding and no map of what it looks at: The model in {trained} was" in (
        result.stderr
    )
    assert 'id="training"' in page
    assert 'id="domains"' not in page
    assert "Warning" not in succeeds("report", trained, "--method", mine).stderr
    assert 'id="domains"' in (trained / "report.html").read_text()


def test_fit_reports_on_its_own_method(tmp_path: Path, mine: Path, data: tuple[str | Path, ...]) -> None:
    result = succeeds("fit", *data, "--method", mine, "--out", tmp_path / "run", "--report")
    assert "Warning" not in result.stderr
    assert "Adapted by Mine" in (tmp_path / "run" / "report.html").read_text()


def test_a_row_of_a_bench_beside_another(tmp_path: Path, mine: Path, data: tuple[str | Path, ...]) -> None:
    (tmp_path / "grid.toml").write_text(
        'seeds = [0]\ndata = { tasks = ["S-T"], domains = { S = "source.npz", T = "target.npz" } }\n'
        "settings = { steps = 3, batch_size = 6, bottleneck = 8 }\n"
        '[[row]]\nname = "DANN"\n'
        '[[row]]\nname = "ours"\nmethod = "code/my.py:Mine"\noptions = { weight = 0.5 }\nbaseline = "DANN"\n'
    )
    out = tmp_path / "bench"
    for jobs in ("2", "1"):  # workers that begin anew, and this process: the same runs
        succeeds("bench", tmp_path / "grid.toml", "--out", out, "--jobs", jobs)
        text = (out / "records.jsonl").read_text()
        dann, ours = map(json.loads, text.splitlines())
        assert (dann["status"], ours["status"]) == ("done", "done"), (dann["error"], ours["error"])
    assert (ours["method"], ours["options"]) == ("Mine", {"weight": 0.5})
    assert ours["code"] == {"method": registry.origin(str(mine)).as_dict()}  # type: ignore[union-attr]
    assert "code" not in dann
    assert str(tmp_path) not in text  # the same record, wherever the bench was made
    assert "ours" in succeeds("table", out).stdout
    assert len(list((out / "runs").iterdir())) == 2

    mine.write_text(MINE + "\n# another thought\n")
    succeeds("bench", tmp_path / "grid.toml", "--out", out, "--methods", "ours,DANN")
    assert len(list((out / "runs").iterdir())) == 3
    only = succeeds("bench", tmp_path / "grid.toml", "--out", tmp_path / "only", "--methods", "Mine", "--json").stdout
    assert '"done": 1' in only


def test_methods_of_a_bench_without_a_grid(tmp_path: Path, mine: Path) -> None:
    root = make("office31", tmp_path / "office31", per_class=1)
    grid = grid_of(None, benchmark="office31", root=root, only=[str(mine), "dann", "CDAN"])
    assert [(row.name, row.method) for row in grid.rows] == [
        ("Mine", f"{mine}:Mine"),
        ("dann", "dann"),
        ("CDAN", "cdan"),
    ]


def test_a_file_that_changes_while_a_bench_runs(
    tmp_path: Path, mine: Path, data: tuple[str | Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "grid.toml").write_text(
        'seeds = [0]\ndata = { tasks = ["S-T"], domains = { S = "source.npz", T = "target.npz" } }\n'
        "settings = { steps = 3, batch_size = 6, bottleneck = 8 }\n"
        '[[row]]\nname = "ours"\nmethod = "code/my.py:Mine"\n'
    )
    make = workers.Maker.make

    def edited_before(*args: Any, **kwargs: Any) -> bool:
        mine.write_text(MINE + "\n# edited\n")
        return make(*args, **kwargs)

    monkeypatch.setattr(workers.Maker, "make", edited_before)
    sentence = acclimate("bench", tmp_path / "grid.toml", "--out", tmp_path / "bench").stderr
    assert "have changed since the bench began: begin it again" in sentence
    (record,) = map(json.loads, (tmp_path / "bench" / "records.jsonl").read_text().splitlines())
    assert record["status"] == "failed"


def test_a_run_in_a_folder_of_other_code_is_refused(
    tmp_path: Path, mine: Path, data: tuple[str | Path, ...], trained: Path
) -> None:
    mine.write_text(MINE.replace("p.clamp", "(p + 0).clamp"))
    result = acclimate("fit", *data, "--method", mine, "--out", trained)
    assert result.exit_code == 2
    assert "holds a run with other data, other code or of another version" in result.stderr


def test_a_class_for_the_estimator(tmp_path: Path, mine: Path) -> None:
    cls = registry.load(str(mine))
    with np.load(vectors(tmp_path / "x.npz")) as arrays:
        X, y = arrays["x"], arrays["y"]
    small: dict[str, Any] = {"bottleneck": 8, "batch_size": 6, "steps": 3, "random_state": 0}
    by_class, by_name = (AdaptiveClassifier(method=m, **small).fit(X, y) for m in (cls, str(mine)))
    assert np.array_equal(by_class.predict_proba(X), by_name.predict_proba(X))
    built_in, named = (AdaptiveClassifier(method=m, **small).fit(X, y) for m in (DANN, "dann"))
    assert built_in.model_.spec == named.model_.spec

    by_class.model_.save(tmp_path)
    with pytest.raises(OptionError, match=r"the method Mine, which was handed over in Python: load .*method=\.\.\."):
        Model.load(tmp_path)
    for again in (cls, str(mine)):
        assert isinstance(Model.load(tmp_path, method=again).method, cls)
    by_name.model_.save(tmp_path)
    assert isinstance(Model.load(tmp_path, method=cls).method, cls)


def test_a_class_has_no_run_directory(tmp_path: Path, mine: Path, data: tuple[str | Path, ...]) -> None:
    settings = Settings(str(data[1]), str(data[3]), method=registry.load(str(mine)))
    with pytest.raises(OptionError, match="A run directory cannot tell a method that is handed over in Python"):
        fit(settings, tmp_path / "run", Screen(quiet=True))


# --- nobody's code runs by itself ----------------------------------------------------------------------------------


def test_a_model_runs_no_file_by_itself(
    tmp_path: Path, mine: Path, trained: Path, data: tuple[str | Path, ...]
) -> None:
    forget()
    needed = (
        f"The model in {trained} was trained with the method {mine}:Mine, which is no part of Acclimate and is used "
        f"only if you name it: give it again with --method {mine}:Mine (method= in Python)."
    )
    assert refused("predict", trained, data[3], "--out", tmp_path / "p.csv") == needed
    assert refused("evaluate", trained, data[3]) == needed
    with pytest.raises(OptionError) as raised:
        Model.load(trained)
    assert str(raised.value) == needed
    assert not [name for name in sys.modules if name.startswith("acclimate_outside_")]


def test_a_file_that_has_changed_is_refused_and_one_that_was_moved_is_not(
    tmp_path: Path, mine: Path, trained: Path, data: tuple[str | Path, ...]
) -> None:
    moved = mine.rename(tmp_path / "moved.py")
    predict = ("predict", trained, data[3], "--out", tmp_path / "p.csv", "--method", f"{moved}:Mine")
    succeeds(*predict)
    moved.write_text(MINE + "\n")
    result = acclimate(*predict)
    assert result.exit_code == 2
    assert result.stderr == (
        f"Error: The model in {trained} was trained with the method {mine}:Mine, and the file has changed since: give "
        "it as it was, or train again.\n"
    )


def test_another_method_than_the_model_has_is_refused(
    tmp_path: Path, mine: Path, trained: Path, data: tuple[str | Path, ...]
) -> None:
    other = tmp_path / "other.py"
    other.write_text(MINE.replace("class Mine", "class Other"))
    for given in (other, "dann"):
        result = acclimate("evaluate", trained, data[3], "--method", given)
        assert (result.exit_code, f"the method {mine}:Mine, not with " in result.stderr) == (2, True)
    succeeds("fit", *data, "--method", "dann", "--out", tmp_path / "dann")
    succeeds("evaluate", tmp_path / "dann", data[3], "--method", "dann")
    for given in (mine, "cdan"):
        result = acclimate("evaluate", tmp_path / "dann", data[3], "--method", given)
        assert (result.exit_code, "the method dann, not with" in result.stderr) == (2, True)
        assert result.stderr.endswith(": leave out --method.\n")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"origin": None}, "There is no method '{mine}:Mine'; there are adda"),
        ({"origin": {"kind": "friend"}}, "it names an impossible origin of code"),
        ({"origin": {"kind": "file"}}, "it names an impossible origin of code"),
        ({"origin": {"kind": "file", "sha256": 5}}, "it names an impossible origin of code"),
        ({"origin": {"kind": ["file"]}}, "it names an impossible origin of code"),
        ({"origin": "file"}, "it names an impossible origin of code"),
        ({"origin": ...}, "model.json lacks 'origin'"),
    ],
)
def test_a_forged_origin_runs_nothing(changes: dict[str, Any], reason: str, mine: Path, trained: Path) -> None:
    forget()
    content = {**json.loads((trained / "model.json").read_text()), **changes}
    (trained / "model.json").write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))
    with pytest.raises(DataError) as raised:
        Model.load(trained)
    assert f"is damaged or of another version ({reason.format(mine=mine)}" in str(raised.value)
    assert not [name for name in sys.modules if name.startswith("acclimate_outside_")]


# --- files that hold no method -------------------------------------------------------------------------------------

STUB = "from acclimate.methods.base import Method\n"
BODY = "    def step(self, s, t): yield\n    def predict(self, x): return x\n"


def method_of(folder: Path, text: str, name: str = "") -> str:
    """The sentence with which a file is refused, without its path."""
    path = folder / "my.py"
    path.write_text(text)
    with pytest.raises(OptionError) as raised:
        options(f"{path}:{name}" if name else str(path))
    sentence = str(raised.value)
    assert "\n" not in sentence
    return sentence.replace(str(path), "my.py")


@pytest.mark.parametrize(
    ("text", "name", "sentence"),
    [
        ("x = 1\n", "", "my.py defines no method: derive a class from acclimate.methods.base.Method."),
        (STUB, "", "my.py defines no method: derive a class from acclimate.methods.base.Method."),
        (
            f"{STUB}class A(Method):\n{BODY}class B(Method):\n{BODY}",
            "",
            "my.py defines the methods A and B: name one, as in my.py:A.",
        ),
        (f"{STUB}class Mine(Method):\n{BODY}", "Mina", "my.py has no class 'Mina'; did you mean Mine?"),
        ("x = 1\n", "x", "my.py has no class 'x'; there are none."),
        ("class Mine: pass\n", "Mine", "Mine is no method: derive it from acclimate.methods.base.Method."),
        (
            f"{STUB}class Mine(Method):\n    def predict(self, x): return x\n",
            "",
            "The method Mine does not define step: add what lacks.",
        ),
        ("x = 1\ny = x +\n", "", "my.py cannot be used: line 2, SyntaxError: invalid syntax; correct the file."),
        (
            "\nimport no_such_module\n",
            "",
            "my.py cannot be used: line 2, ModuleNotFoundError: No module named 'no_such_module'; correct the file.",
        ),
        (
            "def f():\n    return 1 / 0\n\nf()\n",
            "",
            "my.py cannot be used: line 2, ZeroDivisionError: division by zero; correct the file.",
        ),
        ("import sys\nsys.exit(3)\n", "", "my.py cannot be used: line 2, SystemExit: 3; correct the file."),
        (
            f"{STUB}class Dann(Method):\n{BODY}",
            "",
            "The name Dann is that of a method of Acclimate: give the class another.",
        ),
        (
            f"{STUB}class SourceOnly(Method):\n{BODY}",
            "",
            "The name SourceOnly is that of a method of Acclimate: give the class another.",
        ),
        (
            "from acclimate.methods.dann import DANN\n",
            "DANN",
            "DANN in my.py is imported from acclimate.methods.dann: name the file that defines it.",
        ),
        (
            f"{STUB}class Mine(Method):\n    needs = 'maps'\n{BODY}",
            "",
            "The method Mine needs 'maps', which there is not: set needs to one of vector, map, image.",
        ),
    ],
)
def test_what_is_no_method(text: str, name: str, sentence: str, tmp_path: Path) -> None:
    assert method_of(tmp_path, text, name) == sentence


@pytest.mark.parametrize(
    ("signature", "sentence"),
    [
        ("net, num_classes, weight=1.0", "The option weight of Mine is not keyword-only: write"),
        ("net, num_classes, *, weight: float", "The option weight of Mine has no default: give it one in __init__."),
        ("net, num_classes, *, weight=1.0", "The option weight of Mine has no type that text can be read as"),
        ("net, num_classes, *, weight: list = None", "The option weight of Mine has no type that text can be read as"),
        ("net, num_classes, *, weight: 'Unknown' = None", "The option weight of Mine has no type that text can be"),
        (
            "net, num_classes, *, weight: float = 'much'",
            "The option weight of Mine has the default 'much', which is not",
        ),
        ("net, num_classes, **more", "The option more of Mine is not keyword-only: write"),
        ("net, *, num_classes=3", "Mine is not made of a network and a number of classes: define __init__(self, net, "),
        (
            "net, num_classes, weight",
            "Mine is not made of a network and a number of classes: define __init__(self, net, ",
        ),
    ],
)
def test_options_that_nobody_could_set(signature: str, sentence: str, tmp_path: Path) -> None:
    init = f"    def __init__(self, {signature}): pass\n"
    assert method_of(tmp_path, f"{STUB}class Mine(Method):\n{init}{BODY}").startswith(sentence)


def test_a_recipe_with_an_entry_that_is_none(tmp_path: Path, mine: Path, data: tuple[str | Path, ...]) -> None:
    mine.write_text(MINE.replace("    def __init__(", "    recipe = {'steps': 5}\n\n    def __init__("))
    result = acclimate("fit", *data, "--method", mine, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "The recipe of Mine has an entry 'steps': a method may set optimizer, lr," in result.stderr


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for name in ("none.py", "none.py:Mine"):
        with pytest.raises(OptionError, match=r"^There is no file .*none\.py: check the path\.$"):
            registry.load(str(tmp_path / name))
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(OptionError, match=r"folder\.py cannot be read \(.*\): name a file of Python code\.$"):
        registry.load(str(tmp_path / "folder.py"))


def test_a_class_that_others_derive_from_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text(
        f"{STUB}class Base(Method):\n    def predict(self, x): ...\nclass Mine(Base):\n{BODY}"
    )
    assert registry.load(str(tmp_path / "my.py")).__name__ == "Mine"


def test_a_method_without_a_paper_is_described_all_the_same(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    described = describe(str(mine))
    assert described["title"] == "Confident: the target's predictions have a low entropy"
    assert (described["paper"], described["year"], described["family"], described["rows"]) == ("", None, None, {})
    assert described["options"]["norm"] == {"default": None, "choices": ["l1", "l2", None]}
    shown = succeeds("methods", mine).stdout
    assert "weight" in shown
    assert "0.1" in shown


def test_values_of_a_strangers_options(mine: Path) -> None:
    given = ["weight=2", "floor=-1", "rounds=0", "norm=none"]
    assert parse_options(str(mine), given) == {"weight": 2, "floor": -1, "rounds": 0, "norm": None}
    assert check_options(registry.load(str(mine)), {"norm": "l2"}) == {"norm": "l2"}
    for setting, sentence in {
        "floor=-2": "The option floor of Mine must be a number from -1.0 up, not -2.0.",
        "weight=-1": "The option weight of Mine must be a number from 0 up, not -1.0.",
        "norm=l3": "The option norm of Mine takes l1, l2, none, not 'l3'.",
        "wait=1": "Mine has no option 'wait'; did you mean weight?",
    }.items():
        with pytest.raises(OptionError) as raised:
            parse_options(str(mine), [setting])
        assert str(raised.value) == sentence


@pytest.mark.parametrize(
    ("name", "parts", "shown"),
    [
        (r"C:\x.py:Class", (r"C:\x.py", "Class"), "Class"),
        (r"C:\folder\x.py", (r"C:\folder\x.py", ""), "x.py"),
        ("x.py:Class", ("x.py", "Class"), "Class"),
        ("a:b/x.py", ("a:b/x.py", ""), "x.py"),
        ("X.PY:Class", ("X.PY", "Class"), "Class"),
        ("dann", None, "dann"),
        ("resnet18.a1_in1k", None, "resnet18.a1_in1k"),
        ("local-dir:/nets/small", None, "local-dir:small"),
    ],
)
def test_names_of_files(name: str, parts: tuple[str, str] | None, shown: str) -> None:
    assert outside.split(name) == parts
    assert outside.shown(name) == shown


# --- installed packages --------------------------------------------------------------------------------------------


def install(folder: Path, package: str, version: str, *methods: str, text: str = MINE) -> None:
    """Make a package that offers methods, each of them the class Mine of its module."""
    module = package.replace("-", "_")
    shutil.rmtree(next(folder.glob(f"{module}-*.dist-info"), folder / "none"), ignore_errors=True)
    info = folder / f"{module}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    entries = "".join(f"{name} = {module}:Mine\n" for name in methods)
    (info / "entry_points.txt").write_text(f"[acclimate.methods]\n{entries}")
    (folder / f"{module}.py").write_text(text)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages; what was imported from it is forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    for module in ("their_methods", "other_methods"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    return folder


def test_an_installed_method_is_listed_without_being_imported(site: Path) -> None:
    install(site, "their-methods", "1.2", "theirs", "dann", text="raise RuntimeError\n")
    result = succeeds("methods")
    assert "theirs" in result.stdout
    assert "their-methods" in result.stdout
    assert "The method dann of the package their-methods cannot be used" in result.stderr
    listed = json.loads(succeeds("methods", "--json").stdout)
    assert {"name": "theirs", "origin": {"package": "their-methods", "version": "1.2"}} in listed
    assert registry.load("dann") is DANN
    assert "their_methods" not in sys.modules


def test_an_installed_method_is_trained_and_used(site: Path, tmp_path: Path, data: tuple[str | Path, ...]) -> None:
    install(site, "their-methods", "1.2", "theirs")
    run = tmp_path / "run"
    succeeds("fit", *data, "--method", "theirs", "--out", run, "--compare")
    model = json.loads((run / "model.json").read_text())
    assert model["origin"] == {"kind": "package", "sha256": None, "package": "their-methods", "version": "1.2"}
    evaluate = ("evaluate", run, data[3])
    succeeds(*evaluate)
    succeeds(*evaluate, "--method", "theirs")
    succeeds("report", run)

    install(site, "their-methods", "1.3", "theirs")
    trained = f"The model in {run} was trained with the method theirs of the package their-methods 1.2"
    expected = f"{trained}, and 1.3 is installed: give --method theirs to use it all the same."
    assert refused(*evaluate) == expected
    succeeds(*evaluate, "--method", "theirs")
    assert "holds a run with other data, other code or" in refused("fit", *data, "--method", "theirs", "--out", run)

    install(site, "their-methods", "1.2")
    assert refused(*evaluate) == f"{trained}, which is not installed: install it if you trust it."
    install(site, "other-methods", "1.2", "theirs")
    assert refused(*evaluate) == f"{trained}, and the one that is installed is from other-methods: install the other."
    result = acclimate(*evaluate, "--method", "theirs")
    assert result.exit_code == 2
    assert (
        "with the method theirs of the package their-methods, not of other-methods: install the other." in result.stderr
    )


def test_packages_that_cannot_be_used(site: Path) -> None:
    install(site, "their-methods", "1.2", "theirs", "CDAN+E", text="import no_such_module\n")
    with pytest.raises(OptionError, match=r"There is no method 'thiers'; did you mean theirs\?"):
        registry.load("thiers")
    with pytest.raises(OptionError, match="The method theirs of the package their-methods cannot be imported"):
        registry.load("theirs")
    with pytest.raises(OptionError, match=r"The name CDAN\+E of the method of the package their-methods is that of"):
        registry.load("CDAN+E")
    assert registry.row("CDAN+E") == registry.row("CDAN + E")
    install(site, "other-methods", "1.0", "theirs", text="class Mine: pass\n")
    with pytest.raises(OptionError, match="The packages other-methods and their-methods both offer a method theirs"):
        registry.load("theirs")
    install(site, "their-methods", "1.2")
    with pytest.raises(OptionError, match="Mine is no method: derive it from"):
        registry.load("theirs")


def test_rows_of_a_grid_by_installed_name(site: Path) -> None:
    install(site, "their-methods", "1.2", "theirs")
    assert registry.row("theirs") == ("theirs", {})
    assert issubclass(registry.load("theirs"), Method)
    assert issubclass(OptionError, AcclimateError)
