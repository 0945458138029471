"""Acclimate's methods beside their authors' code, and beside Transfer-Learning-Library (TLL).

    python measurements/authors.py --repositories FOLDER [--table docs/results/audit.md]

FOLDER holds the repositories, each in a folder by its name (`CDAN`) or by owner and name (`thuml+CDAN`), as a work tree
or as a bare git directory, itself or in a folder `repo`. None of their code is part of this project: the files that are
needed are read, put into a temporary folder and **run**, so give repositories that you trust. What is not there is
left out, and the page says so.

Both sides compute the same quantity from the same numbers, in float64. The difference is the largest of the value's and
of each gradient's, relative to the largest entry of theirs.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import math
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from acclimate.bench import papers
from acclimate.bench.grid import make_grid
from acclimate.data.batches import Labelled, Unlabelled
from acclimate.methods import registry
from acclimate.methods.adr import ADR
from acclimate.methods.cdan import CDAN
from acclimate.methods.mcd import discrepancy
from acclimate.methods.parts.layers import Discriminator, DropoutHead, MovingCentroids, reverse
from acclimate.methods.parts.losses import class_balance_loss, domain_loss, entropy, semantic_loss
from acclimate.networks.network import Network
from acclimate.settings import Recipe
from speed import put_out

B, D, K, ITERATION = 16, 12, 5, 700  # batch, feature, classes; the step of TLL's clock
RAMP = 2 / (1 + math.exp(-ITERATION / 1000)) - 1
EXACT = 1e-12


class MissingError(Exception):
    """A repository is not in the folder."""


class Comparison(NamedTuple):
    """A quantity that both sides compute.

    Attributes:
        method: Ours.
        repository: Theirs, "owner/name".
        file: Where in it.
        what: What is compared.
        difference: The largest relative difference.
        why: What differs, where something does.
    """

    method: str
    repository: str
    file: str
    what: str
    difference: float
    why: str = ""


class Repositories:
    """The folder of the repositories, and a temporary one for what is run of them."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.folder = folder
        self.scratch = scratch

    def text(self, repository: str, path: str) -> str:
        """A file's content.

        Raises:
            MissingError: The repository or the file is not there.
        """
        for place in self._places(repository):
            if (place / path).is_file():
                return (place / path).read_text(encoding="utf-8")
            if (place / "HEAD").is_file():
                shown = _git(place, "show", f"HEAD:{path}")
                if shown is not None:
                    return shown
        raise MissingError(repository)

    def commit(self, repository: str) -> str:
        """The commit, shortened; "-" where git does not know it."""
        for place in self._places(repository):
            for git in (place, place / ".git"):
                if (git / "HEAD").is_file() and (commit := _git(git, "rev-parse", "--short", "HEAD")):
                    return commit.strip()
        return "-"

    def module(self, repository: str, path: str) -> Any:
        """One of their files as a module that is run on a CPU; what stands beside it is not to be imported."""
        found = types.ModuleType(Path(path).stem)
        exec(compile(self.text(repository, path), path, "exec"), found.__dict__)
        return found

    def tll(self, name: str) -> Any:
        """A module of TLL's package, of which only what it needs is there."""
        repository = "thuml/Transfer-Learning-Library"
        files = ["alignment/dann", "alignment/cdan", "alignment/dan", "alignment/jan", "alignment/mcd"]
        files += [f"modules/{file}" for file in ("classifier", "grl", "kernels", "entropy", "domain_discriminator")]
        root = self.scratch / "tllib"
        if not root.exists():
            texts = {f"{file}.py": self.text(repository, f"tllib/{file}.py") for file in files}
            texts["utils/metric/__init__.py"] = self.text(repository, "tllib/utils/metric/__init__.py")
            for path in ("", "alignment/", "modules/", "utils/"):
                texts[f"{path}__init__.py"] = ""
            for path, text in texts.items():
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_text(text, encoding="utf-8")
            sys.modules.setdefault("prettytable", types.ModuleType("prettytable"))  # it prints tables with it
            sys.path.insert(0, str(self.scratch))
        return importlib.import_module(f"tllib.{name}")

    def _places(self, repository: str) -> list[Path]:
        owner, name = repository.split("/")
        named = [self.folder / f"{owner}+{name}", self.folder / owner / name, self.folder / name]
        return [place for base in named for place in (base, base / "repo")]


def _git(place: Path, *command: str) -> str | None:
    run = subprocess.run(["git", "--git-dir", str(place), *command], capture_output=True, text=True, check=False)
    return run.stdout if run.returncode == 0 else None


# --- numbers, and how far they are apart -------------------------------------------------------------------------


def features(shift: float = 0.5) -> tuple[Tensor, Tensor]:
    """A batch of each domain, with gradients."""
    torch.manual_seed(0)
    return torch.randn(B, D).requires_grad_(), (torch.randn(B, D) + shift).requires_grad_()


def difference(ours: Tensor, theirs: Tensor, over: Sequence[Tensor]) -> float:
    """The largest relative difference of two scalars and of their gradients over the same tensors."""
    grads = [torch.autograd.grad(loss, list(over), retain_graph=True, allow_unused=True) for loss in (ours, theirs)]
    pairs = [(ours.detach(), theirs.detach())]
    pairs += [(a, b) for a, b in zip(*grads, strict=True) if a is not None and b is not None]
    assert all((a is None) == (b is None) for a, b in zip(*grads, strict=True)), "one side has a gradient more"
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in pairs)


def critics(repositories: Repositories, dim: int) -> tuple[Discriminator, Any]:
    """Our discriminator and TLL's with the same weights."""
    ours = Discriminator(dim, hidden=20)
    theirs = repositories.tll("modules.domain_discriminator").DomainDiscriminator(dim, hidden_size=20)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        b.data.copy_(a.data)
    return ours, theirs


def gradient_reversal(repositories: Repositories, high: float = 1.0) -> Any:
    """TLL's layer at our step of its clock."""
    layer = repositories.tll("modules.grl").WarmStartGradientReverseLayer(1.0, 0.0, high, 1000, auto_step=True)
    layer.iter_num = ITERATION
    return layer


def tied(repositories: Repositories, dim: int, high: float = 1.0) -> tuple[Discriminator, Any, Any]:
    """Both discriminators, and TLL's loss of its own."""
    ours, theirs = critics(repositories, dim)
    loss = repositories.tll("alignment.dann").DomainAdversarialLoss(theirs, grl=gradient_reversal(repositories, high))
    return ours, theirs, loss


# --- the methods -------------------------------------------------------------------------------------------------

TLL = "thuml/Transfer-Learning-Library"


def dann(repositories: Repositories) -> Iterator[Comparison]:
    """The domain loss, in the features and in the discriminator."""
    f_s, f_t = features()
    ours, theirs, loss = tied(repositories, D)
    a, b = domain_loss(ours, reverse(f_s, RAMP), reverse(f_t, RAMP)), loss(f_s, f_t)
    own = difference(a, b, (f_s, f_t))
    moved = [torch.autograd.grad(x, list(m.parameters())) for x, m in ((a, ours), (b, theirs))]
    g, h = (torch.cat([part.flatten() for part in parts]) for parts in moved)  # one of a bias is 0 but for rounding
    weights = float((g - h).abs().max() / h.abs().max())
    yield Comparison("dann", TLL, "tllib/alignment/dann.py", "loss; gradients of features", own)
    yield Comparison("dann", TLL, "tllib/alignment/dann.py", "gradients of the discriminator", weights)


def adda(repositories: Repositories) -> Iterator[Comparison]:
    """The minimax game of TLL, on the target's features."""
    f_s, f_t = features()
    ours, _, loss = tied(repositories, D, high=2.0)
    (theirs,) = torch.autograd.grad(loss(f_s.detach(), f_t), f_t)
    (mine,) = torch.autograd.grad(-2 * RAMP * domain_loss(ours, f_s.detach(), f_t), f_t)
    gap = float((mine - theirs).abs().max() / theirs.abs().max())
    yield Comparison(
        "adda (mapping=minimax)", TLL, "tllib/alignment/dann.py", "gradient of M_t(x_t), reversed by up to 2", gap
    )


def cdan(repositories: Repositories) -> Iterator[Comparison]:
    """TLL's loss."""
    for by_entropy in (False, True):
        method, (s, t) = _cdan(entropy=by_entropy), _batches()
        _, theirs = critics(repositories, K * D)
        for a, b in zip(method.critic.parameters(), theirs.parameters(), strict=True):
            b.data.copy_(a.data)
        loss = repositories.tll("alignment.cdan").ConditionalDomainAdversarialLoss(
            theirs, entropy_conditioning=by_entropy
        )
        loss.grl = gradient_reversal(repositories)
        (objective,) = method.step(s, t)
        z_s, z_t = method.classifier(s.x), method.classifier(t.x)
        gap = difference(objective.terms["adversarial"], loss(z_s, s.x, z_t, t.x), (s.x, t.x))
        why = "1e-5 inside of their logarithm" if by_entropy else ""
        name = "cdan" if by_entropy else "cdan (entropy=False)"
        yield Comparison(name, TLL, "tllib/alignment/cdan.py", "loss; gradients of features", gap, why)


def cdan_authors(repositories: Repositories) -> Iterator[Comparison]:
    """The authors' loss, with their weights."""
    official = repositories.module("thuml/CDAN", "pytorch/loss.py")
    for by_entropy in (False, True):
        method, (s, t) = _cdan(entropy=by_entropy, weights="domain", critic="dropout"), _batches()
        method.eval()  # without dropout, which both draw for themselves
        (objective,) = method.step(s, t)
        f = torch.cat([s.x, t.x])
        p = method.classifier(f).softmax(1)
        their_critic = partial(_probability, method.critic)
        theirs = official.CDAN([f, p], their_critic, official.Entropy(p) if by_entropy else None, RAMP)
        over = (s.x, t.x, method.classifier.weight) if by_entropy else (s.x, t.x)
        gap = difference(objective.terms["adversarial"], theirs, over)
        name = "cdan (weights=domain)" if by_entropy else "cdan (entropy=False, weights=domain)"
        why = "1e-5 inside of their logarithm" if by_entropy else ""
        yield Comparison(name, "thuml/CDAN", "pytorch/loss.py", "loss; gradients of features and classifier", gap, why)


def _cdan(**options: Any) -> CDAN:
    torch.manual_seed(1)
    method = CDAN(Network(nn.Identity(), nn.Identity(), D, bottleneck=0), K, hidden=20, **options)
    method.progress = ITERATION / 10_000
    return method


def _batches() -> tuple[Labelled, Unlabelled]:
    f_s, f_t = features()
    index = torch.arange(B)
    return Labelled(f_s, index % K, index), Unlabelled(f_t, index)


def _probability(critic: nn.Module, h: Tensor) -> Tensor:
    """A discriminator of ours in the form of the authors': it reverses the gradient itself, and ends in a sigmoid."""
    d: Tensor = critic(reverse(h, RAMP))
    return d.sigmoid()[:, None]


def kernels_authors(repositories: Repositories) -> Iterator[Comparison]:
    """DAN, JAN and RTN: the discrepancies as the methods' own terms."""
    xlearn, path = repositories.module("thuml/Xlearn", "pytorch/src/loss.py"), "pytorch/src/loss.py"
    s, t = _batches()
    over = (s.x, t.x)
    theirs = {"linear": xlearn.DAN_Linear(s.x, t.x), "unbiased": xlearn.DAN(s.x, t.x)}
    for estimator, value in theirs.items():
        gap = difference(_term("dan", s, t, estimator=estimator), value, over)
        yield Comparison(f"dan ({estimator})", "thuml/Xlearn", path, "discrepancy; gradients of features", gap)
    method = _method("jan", ramped=False)
    p_s, p_t = (method.classifier(x).softmax(1) for x in over)
    gap = difference(_term("jan", s, t, ramped=False), xlearn.JAN([s.x, p_s], [t.x, p_t]), over)
    yield Comparison("jan", "thuml/Xlearn", path, "discrepancy; gradients of features", gap)
    z_t = method.classifier(t.x)
    gap = difference(entropy(z_t).mean(), xlearn.EntropyLoss(z_t.softmax(1)), (t.x,))
    yield Comparison("rtn", "thuml/Xlearn", path, "entropy of the target's predictions; gradient", gap)


def kernels(repositories: Repositories) -> Iterator[Comparison]:
    """DAN and JAN in TLL."""
    s, t = _batches()
    over, method = (s.x, t.x), _method("jan", ramped=False)
    p_s, p_t = (method.classifier(x).softmax(1) for x in over)
    tll = repositories.tll("modules.kernels")
    widths = [tll.GaussianKernel(alpha=2.0**k) for k in range(-3, 2)]
    constant = 2 / (B - 1)
    why = "their bandwidth is a mean that includes the diagonal"
    for estimator, linear in (("linear", True), ("unbiased", False)):
        loss = repositories.tll("alignment.dan").MultipleKernelMaximumMeanDiscrepancy(widths, linear=linear)
        gap = difference(_term("dan", s, t, estimator=estimator), loss(s.x, t.x) - constant, over)
        yield Comparison(
            f"dan ({estimator})",
            TLL,
            "tllib/alignment/dan.py",
            "discrepancy without their constant; gradients",
            gap,
            why,
        )
    labels = [tll.GaussianKernel(sigma=0.92, track_running_stats=False)]
    loss = repositories.tll("alignment.jan").JointMultipleKernelMaximumMeanDiscrepancy([widths, labels], linear=False)
    gap = difference(_term("jan", s, t, ramped=False), loss((s.x, p_s), (t.x, p_t)) - constant, over)
    why += "; 1.693 for 1.68 on the predictions"
    yield Comparison("jan", TLL, "tllib/alignment/jan.py", "discrepancy without their constant; gradients", gap, why)


def _method(name: str, **options: Any) -> Any:
    torch.manual_seed(1)
    return registry.load(name)(Network(nn.Identity(), nn.Identity(), D, bottleneck=0), K, **options)


def _term(name: str, s: Labelled, t: Unlabelled, **options: Any) -> Tensor:
    """The one term of a method's objective that is not the classification."""
    (objective,) = _method(name, **options).step(s, t)
    (term,) = (value for name, value in objective.terms.items() if name != "classification")
    found: Tensor = term
    return found


def mstn(repositories: Repositories) -> Iterator[Comparison]:
    """Four batches of moving centroids, and the semantic loss of the last."""
    theirs = [repositories.module("woozch/DSBN", "model/centroids.py").Centroids(D, K, decay_const=0.3) for _ in "st"]
    ours, gap = MovingCentroids(K, D, theta=0.7), 0.0
    for number in range(4):
        torch.manual_seed(number)
        f_s, f_t = torch.randn(B, D).requires_grad_(), torch.randn(B, D).requires_grad_()
        y_s, y_t = torch.randint(K, (2, B))
        C_s, C_t = ours(f_s, y_s, f_t, y_t)
        T_s, T_t = theirs[0](f_s, y_s), theirs[1](f_t, y_t)
        gap = max(gap, difference(semantic_loss(C_s, C_t), torch.nn.functional.mse_loss(T_s, T_t), (f_s, f_t)))
        for module, moved in zip(theirs, (T_s, T_t), strict=True):
            module.centroids.data = moved.detach()
    what = "semantic loss over four batches; gradients of features"
    yield Comparison("mstn", "woozch/DSBN", "model/centroids.py", what, gap)


def mcd(repositories: Repositories) -> Iterator[Comparison]:
    """The discrepancy and the class balance of TLL."""
    torch.manual_seed(0)
    z = torch.randn(2, B, K).requires_grad_()
    tll = repositories.tll("alignment.mcd")
    gap = difference(discrepancy(z), tll.classifier_discrepancy(z[0].softmax(1), z[1].softmax(1)), (z,))
    yield Comparison("mcd", TLL, "tllib/alignment/mcd.py", "discrepancy; gradients of logits", gap)
    gap = difference(class_balance_loss(z[0]), tll.entropy(z[0].softmax(1)), (z,))
    yield Comparison("mcd", TLL, "tllib/alignment/mcd.py", "class balance; gradients of logits", gap)


def mcd_head(repositories: Repositories) -> Iterator[Comparison]:
    """The head of the authors' code for digits, with its dropout."""
    repository, path = "mil-tokyo/MCD_DA", "classification/model/usps.py"
    sys.modules.setdefault("grad_reverse", types.ModuleType("grad_reverse"))
    sys.modules["grad_reverse"].grad_reverse = None  # type: ignore[attr-defined]  # which these passes do not use
    theirs = repositories.module(repository, path).Predictor()
    ours = DropoutHead(768, 10, hidden=100, last_dropout=True, init="pytorch")
    for a, b in zip(ours.parameters(), list(theirs.parameters())[: len(list(ours.parameters()))], strict=True):
        a.data.copy_(b.data)
    f = torch.randn(B, 768).requires_grad_()
    values = []
    for head in (ours, theirs):
        torch.manual_seed(3)  # both draw their dropouts in the same order
        values.append(head(f).square().mean())
    what = "head of digits under the same dropout; gradients of features"
    yield Comparison("mcd (last_dropout, init=pytorch)", repository, path, what, difference(values[0], values[1], (f,)))


COMPARED: tuple[Callable[[Repositories], Iterator[Comparison]], ...] = (
    dann,
    adda,
    cdan,
    cdan_authors,
    kernels_authors,
    kernels,
    mstn,
    mcd,
    mcd_head,
)
NOT_COMPARED = {
    "simnet, tada, wemnet": "no code was published; their equations are tested against references written out by hand",
    "adda (mapping=inverted), adr, mada, gta, crst, tca, gfk": "not by this command; their equations are tested too",
}


# --- ADR's head --------------------------------------------------------------------------------------------------


def heads() -> list[tuple[str, float, float]]:
    """ADR's d by KL and by |p_1 - p_2|: under the head of digits over that under another, medians of 20 draws."""
    published = {"last_dropout": True, "init": "pytorch"}
    others: list[tuple[str, dict[str, Any]]] = [
        ("without the last dropout", {"init": "pytorch"}),
        ("from N(0, 0.01²)", {"last_dropout": True}),
        ("without the last dropout, from N(0, 0.01²)", {}),
    ]

    def d(options: dict[str, Any], divergence: str) -> float:
        found = []
        for seed in range(20):
            torch.manual_seed(seed)
            f = torch.randn(64, 800).relu()
            torch.manual_seed(seed)
            net = Network(nn.Identity(), nn.Identity(), 800, bottleneck=0)
            shape: dict[str, Any] = {"hidden": 500, "hidden_layers": 1, "divergence": divergence}
            method = ADR(net, 10, **shape, **options)
            z_1, z_2 = method.critic(torch.cat([f, f])).chunk(2)
            found.append(method.divergence(z_1, z_2).item())
        return sorted(found)[len(found) // 2]

    return [
        (name, d(published, "kl") / d(options, "kl"), d(published, "l1") / d(options, "l1")) for name, options in others
    ]


# --- TLL's recipes -----------------------------------------------------------------------------------------------

SCRIPTS = {"ResNet-50": "erm", "DANN": "dann", "CDAN+E": "cdan", "DAN": "dan", "JAN": "jan", "ADDA": "adda"}


def recipes(repositories: Repositories) -> Iterator[tuple[str, str, bool]]:
    """Each of TLL's scripts, its defaults, and whether our presets have them."""
    for row, script in SCRIPTS.items():
        path = f"examples/domain_adaptation/image_classification/{script}.py"
        asked = _defaults(repositories.text(TLL, path))
        lr, gamma, momentum = asked["lr"], asked["lr_gamma"], asked["momentum"]
        decay = asked["weight_decay"]
        table = "wemnet-table1" if row == "CDAN+E" else "tada-table1"
        ours = _recipe(table, row)
        same = math.isclose(ours.lr, lr) and math.isclose(ours.decay, 10_000 * gamma) and ours.schedule == "tll"
        same &= math.isclose(ours.momentum, momentum) and math.isclose(ours.weight_decay, decay)
        yield f"{table}, {row}", f"lr {lr}, gamma {gamma}, momentum {momentum}, weight decay {decay}", same


def _defaults(text: str) -> dict[str, Any]:
    """The defaults that a script's arguments have, by each of their names."""
    found: dict[str, Any] = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
            names = [str(arg.value).lstrip("-").replace("-", "_") for arg in node.args if isinstance(arg, ast.Constant)]
            for word in node.keywords:
                if word.arg == "default" and isinstance(word.value, ast.Constant):
                    found |= dict.fromkeys(names, word.value.value)
    return found


def _recipe(table: str, name: str) -> Recipe:
    content = papers.grid(table) | {"data": {"domains": {"A": "a", "B": "b"}}}
    (row,) = make_grid(content, only=[name]).rows
    known = Recipe.__dataclass_fields__
    return Recipe.of(registry.load(row.method), **{k: v for k, v in row.settings.items() if k in known})


# --- the page ----------------------------------------------------------------------------------------------------


def page(repositories: Repositories) -> str:
    """All that is compared, as Markdown."""
    found: list[Comparison] = []
    missing: dict[str, None] = {}
    for compare in COMPARED:
        try:
            found.extend(compare(repositories))
        except MissingError as error:
            missing[f"what {error} has: it is not in the folder"] = None
    lines = [
        "# The methods beside their authors' code",
        "",
        "Made by `python measurements/authors.py --repositories FOLDER --table docs/results/audit.md`.",
        "",
        "Both sides compute the same quantity from the same numbers in float64. The difference is the largest of the",
        "value's and of each gradient's, relative to the largest entry of theirs; \"=\" stands for 1e-12 or less.",
        "",
        "| method | repository | file | what | largest difference | why |",
        "|---|---|---|---|---:|---|",
    ]
    for one in found:
        gap = "=" if one.difference <= EXACT else f"{one.difference:.0e}"
        lines.append(f"| {one.method} | {one.repository} | `{one.file}` | {one.what} | {gap} | {one.why} |")
    lines += ["", "Not compared:", ""]
    lines += [f"- {names}: {why}." for names, why in NOT_COMPARED.items()]
    lines += [f"- {told}." for told in missing]
    lines += _recipes_told(repositories)
    lines += ["", "## The head of ADR and MCD on digits", ""]
    lines += [
        "d of ADR at the start, under the head of the authors' code for digits over that under another (one hidden"
    ]
    lines += ["layer of 500 on 800 features of random numbers, medians of 20 draws):", ""]
    lines += ["| the other head | KL | \\|p_1 - p_2\\| |", "|---|---:|---:|"]
    lines += [f"| {name} | {kl:.1f} | {l1:.1f} |" for name, kl, l1 in heads()]
    used = dict.fromkeys(one.repository for one in found)
    lines += ["", "Commits: " + ", ".join(f"{name} {repositories.commit(name)}" for name in used) + "."]
    return "\n".join(lines)


def _recipes_told(repositories: Repositories) -> list[str]:
    lines = ["", "## TLL's recipes", ""]
    try:
        told = list(recipes(repositories))
    except MissingError as error:
        return [*lines, f"{error} is not in the folder."]
    lines += ["The defaults of its scripts, and whether the rows of the [papers' grids](../bench.md) have them:", ""]
    lines += ["| row | TLL | the same |", "|---|---|---|"]
    return lines + [f"| {row} | {theirs} | {'yes' if same else '**no**'} |" for row, theirs, same in told]


def main() -> None:
    """Compare, and print or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repositories", type=Path, required=True, help="the folder of the authors' repositories")
    parser.add_argument("--table", type=Path, help="write the page here too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    vars(np)["float"] = float  # TLL is of a time when NumPy had it
    torch.Tensor.cuda = lambda self, *_: self.double()  # type: ignore[method-assign]  # CDAN's code asks for a GPU
    with tempfile.TemporaryDirectory() as scratch:
        put_out(page(Repositories(args.repositories, Path(scratch))), args.table)


if __name__ == "__main__":
    main()
