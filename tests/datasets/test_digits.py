"""The two domains of digits that the demo runs on."""

import hashlib
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from acclimate.data.decode import picture, read_image
from acclimate.data.domain import Domain, check_pair
from acclimate.data.read import label_counts, read_source, read_target
from acclimate.datasets.digits import write_digits
from acclimate.errors import DataError


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_digits(tmp_path_factory.mktemp("digits"))


def pixels(domain: Domain) -> np.ndarray:
    """Every twentieth image, (n, 28, 28), which must be grey."""
    images = np.stack([np.asarray(picture(domain, i)) for i in range(0, len(domain), 20)])
    assert (images == images[..., :1]).all()
    return images[..., 0]


def test_two_domains_of_ten_classes(written: tuple[Path, Path]) -> None:
    source, target = read_source(written[0]), read_target(written[1])
    check_pair(source, target)
    assert source.classes == tuple("0123456789")
    assert (len(source), len(target)) == (1797, 5000)
    assert np.bincount(source.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert set(label_counts(written[1]).values()) == {500}
    assert [path.name for path in written] == ["uci", "mnist"]


def test_both_are_bright_digits_on_black(written: tuple[Path, Path]) -> None:
    for images in (pixels(read_source(written[0]).domain), pixels(read_target(written[1]))):
        assert images.shape[1:] == (28, 28)
        assert images.max(axis=(1, 2)).min() > 200
        assert images[:, [0, -1]].mean() < 1
        assert 20 < images.mean() < 60


def test_uci_digits_fill_mnists_box(written: tuple[Path, Path]) -> None:
    ink = pixels(read_source(written[0]).domain).max(axis=0) > 0
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    assert (rows[0], rows[-1]) == (4, 23)
    assert 4 <= columns[0] < columns[-1] <= 23


def test_uci_images_keep_their_labels_and_shapes(written: tuple[Path, Path]) -> None:
    from sklearn.datasets import load_digits

    data = load_digits()
    for i in range(0, 1797, 100):
        (path,) = written[0].glob(f"*/{i:04}.png")
        assert path.parent.name == str(data.target[i])
        box = np.asarray(read_image(path).convert("L"))[4:24, 4:24].astype(float)
        original = (
            np.kron(data.images[i], np.ones((5, 5))).reshape(20, 2, 20, 2).mean(axis=(1, 3))
        )  # (8, 8) -> (20, 20)
        assert np.corrcoef(box.ravel(), original.ravel())[0, 1] > 0.9


def test_mnist_images_keep_their_pixels_and_order(written: tuple[Path, Path]) -> None:
    paths = sorted(written[1].glob("*/*.png"), key=lambda path: path.name)
    assert [path.stem for path in paths] == [f"{i:04}" for i in range(5000)]
    assert [path.parent.name for path in paths] == [digit for digit in "0123456789" for _ in range(500)]
    pixels = hashlib.sha256(b"".join(Image.open(path).tobytes() for path in paths))
    assert pixels.hexdigest() == "2913c6b6527114b7307e1086335a7665e3f94c74aba3d67525e6f116bf5ae20f"


def test_the_embedded_digits_name_their_licence_and_source() -> None:
    text = resources.files("acclimate.datasets").joinpath("mnist_5000.txt").read_text(encoding="utf-8")
    assert "LeCun" in text
    assert "Attribution-ShareAlike 3.0" in text


def test_a_complete_folder_is_not_loaded_again(written: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def unexpected(*args: object, **options: object) -> None:
        raise AssertionError

    monkeypatch.setattr("sklearn.datasets.load_digits", unexpected)
    monkeypatch.setattr("numpy.load", unexpected)
    assert write_digits(written[0].parent) == written


def test_a_partial_folder_is_completed(written: tuple[Path, Path]) -> None:
    lost, kept = written[0] / "0" / "0000.png", written[0] / "1" / "0001.png"
    content, changed = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    (lost.parent / ".0000.png.1234").write_bytes(content[:50])  # what a killed run leaves
    write_digits(written[0].parent)
    assert lost.read_bytes() == content
    assert kept.stat().st_mtime_ns == changed
    assert len(read_target(written[0])) == 1797


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"^The digits cannot be written to .*file \(.*\): name another folder\.$"):
        write_digits(tmp_path / "file")
