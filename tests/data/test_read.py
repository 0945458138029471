"""Reading folders, lists, CSV files and arrays, and every sentence that a user may get on the way."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from acclimate.data import npz
from acclimate.data.domain import Domain, check_pair, labelled, sorted_classes
from acclimate.data.formats import lists
from acclimate.data.read import domain_of, label_counts, read_sealed, read_source, read_target
from acclimate.data.sealed import open_labels
from acclimate.errors import DataError

Write = Callable[..., Path]
FILE_NAMES = st.text(
    st.characters(exclude_characters="/\0\n\r", exclude_categories=["Cs"]), min_size=1, max_size=40
).filter(lambda name: name[0] not in ".#" and not name[0].isspace() and len(name.encode()) < 200)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes tiny images at the given names below a folder."""

    def write(folder: str, *names: str) -> Path:
        for name in names:
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (2, 2)).save(path, "PNG")
        return tmp_path / folder

    return write


@pytest.fixture
def pets(write: Write) -> Path:
    return write("pets", "dog/2.png", "cat/b.JPG", "cat/a b.png", "cat/deep/er/c.Jpeg")


def labels_in(spec: Path) -> tuple[str | None, ...]:
    """The labels of a target, whose names are those of its domain."""
    domain, sealed = read_sealed(spec)
    names, labels, _ = open_labels(sealed)
    assert names == domain.names == read_target(spec).names
    return labels


def sentence(call: Callable[..., object], *arguments: object) -> str:
    """The message of the `DataError` that a call must end in, checked for form."""
    with pytest.raises(DataError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


class TestFolders:
    def test_source_of_class_folders(self, pets: Path) -> None:
        source = read_source(pets)
        assert source.domain.names == ("cat/a b.png", "cat/b.JPG", "cat/deep/er/c.Jpeg", "dog/2.png")
        assert source.classes == ("cat", "dog")
        assert source.labels.tolist() == [0, 0, 0, 1]
        assert source.labels.dtype == np.int64
        assert source.domain.items[0] == str(pets / "cat" / "a b.png")
        assert source.domain.origin == str(pets)
        assert source.domain.kind == "files"
        assert len(source) == len(source.domain) == 4

    def test_spec_may_be_text(self, pets: Path) -> None:
        assert read_source(str(pets)).domain.names == read_source(pets).domain.names

    def test_target_without_class_folders(self, write: Write) -> None:
        folder = write("photos", "b.png", "a.png", "2024/may/c.png")
        assert read_target(folder).names == ("2024/may/c.png", "a.png", "b.png")
        assert labels_in(folder) == ("2024", None, None)

    def test_sorted_by_path_parts_not_by_characters(self, write: Write) -> None:
        folder = write("photos", "a/x.png", "a b/x.png", "a-b/x.png")
        assert read_target(folder).names == ("a/x.png", "a b/x.png", "a-b/x.png")

    def test_hidden_system_and_other_files_are_ignored(self, pets: Path, write: Write) -> None:
        names = read_source(pets).domain.names
        write("pets", ".hidden/x.png", "cat/.x.png", "__MACOSX/cat/x.png", "cat/@eaDir/x.png")
        for other in ("Thumbs.db", "desktop.ini", "notes.txt", "cat/Thumbs.db", "cat/labels.csv", "cat/noextension"):
            (pets / other).write_text("x")
        assert read_source(pets).domain.names == names

    @pytest.mark.parametrize("suffix", ["jpg", "jpeg", "jfif", "png", "webp", "bmp", "tif", "tiff", "gif", "TIFF"])
    def test_every_extension(self, write: Write, suffix: str) -> None:
        assert read_target(write("photos", f"x.{suffix}")).names == (f"x.{suffix}",)

    def test_numeric_class_folders_sort_as_numbers(self, write: Write) -> None:
        assert read_source(write("digits", "10/a.png", "9/a.png", "1/a.png")).classes == ("1", "9", "10")

    @settings(max_examples=30, deadline=None, derandomize=True, database=None)
    @given(names=st.sets(FILE_NAMES, min_size=1, max_size=5))
    def test_any_name(self, names: set[str], tmp_path_factory: pytest.TempPathFactory) -> None:
        folder = tmp_path_factory.mktemp("names")
        files = {f"{name}.png" for name in names}
        for file in files:
            (folder / file).touch()
        assert set(read_target(folder).names) == files
        listing = folder / "list.txt"
        listing.write_text("".join(f"{file} label\n" for file in files), "utf-8")
        assert set(read_target(listing).names) == files
        assert set(labels_in(listing)) == {"label"}

    def test_names_that_are_not_utf8_can_be_written(self, pets: Path) -> None:
        try:
            (Path(os.fsdecode(os.fsencode(pets) + b"/cat/\xff.png"))).touch()
        except OSError:
            pytest.skip("this disk only has UTF-8 names")
        domain = read_target(pets)
        assert "cat/\ufffd.png" in domain.names
        assert all(name.encode() for name in domain.names)
        assert all(Path(path).exists() for path in domain.items)
        assert len(domain.fingerprint()) == 64

    def test_class_folders_that_would_be_written_alike_are_refused(self, pets: Path) -> None:
        for name in (b"cl\xff", b"cl\xfe"):
            folder = Path(os.fsdecode(os.fsencode(pets) + b"/" + name))
            try:
                folder.mkdir()
            except OSError:
                pytest.skip("this disk only has UTF-8 names")
            (folder / "a.png").touch()
            if name == b"cl\xff":
                assert read_source(pets).classes == ("cat", "cl\ufffd", "dog")  # one alone is told from the others
        for read in (read_source, read_target, read_sealed, label_counts):
            message = sentence(read, pets)
            assert message == (
                f"The folders 'cl\\xfe' and 'cl\\xff' in {pets} have names that are not UTF-8 and that nobody can tell "
                "apart: rename one of them."
            )

    def test_cycles_of_links_end_and_repeat_nothing(self, pets: Path) -> None:
        names = read_target(pets).names
        (pets / "cat" / "all").symlink_to(pets)
        (pets / "cat" / "a_dog").symlink_to(pets / "dog")
        (pets / "dog" / "self").symlink_to(pets / "dog" / "self")
        assert read_target(pets).names == names

    def test_linked_class_folders_and_files(self, pets: Path, tmp_path: Path) -> None:
        linked = tmp_path / "linked"
        (linked / "dog").mkdir(parents=True)
        (linked / "cat").symlink_to(pets / "cat")
        (linked / "dog" / "link.png").symlink_to(pets / "dog" / "2.png")
        source = read_source(linked)
        assert source.domain.names == ("cat/a b.png", "cat/b.JPG", "cat/deep/er/c.Jpeg", "dog/link.png")
        assert source.labels.tolist() == [0, 0, 0, 1]

    def test_missing(self, tmp_path: Path) -> None:
        for read in (read_source, read_target, read_sealed):
            assert sentence(read, tmp_path / "no") == f"{tmp_path / 'no'} does not exist: check the path."

    def test_empty(self, tmp_path: Path) -> None:
        (tmp_path / "empty" / "cat").mkdir(parents=True)
        for read in (read_source, read_target, read_sealed):
            assert "empty holds no images: name a folder with .bmp," in sentence(read, tmp_path / "empty")

    def test_flat_source(self, write: Write) -> None:
        message = sentence(read_source, write("flat", "a.png", "b.png"))
        assert "flat holds 2 images but no class folders: put the images of each class into a folder" in message

    def test_loose_images_in_source(self, pets: Path, write: Write) -> None:
        write("pets", "z.png", "y.png")
        message = sentence(read_source, pets)
        assert "holds 2 images outside its class folders, for example 'y.png': move each" in message
        assert len(read_target(pets)) == 6

    def test_class_folder_without_image(self, pets: Path) -> None:
        (pets / "hen" / "deeper").mkdir(parents=True)
        assert f"The class folder {pets / 'hen'} holds no image: add" in sentence(read_source, pets)
        assert len(read_target(pets)) == 4

    def test_one_class(self, write: Write) -> None:
        message = sentence(read_source, write("office", "images/mug/a.png", "images/pen/a.png"))
        assert "office has only the class 'images': give at least two" in message
        assert "name the folder that holds them" in message

    def test_unreadable_folder(self, pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(path: Path) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(os, "scandir", refuse)
        assert sentence(read_target, pets) == f"{pets} cannot be read (Permission denied): check that you may open it."

    def test_unknown_kind_of_file(self, pets: Path) -> None:
        message = sentence(read_target, pets / "dog" / "2.png")
        assert "2.png is not a form of data that can be read: give a folder, an image list (.txt), a CSV" in message


class TestLists:
    def test_paths_labels_comments_and_blanks(self, pets: Path) -> None:
        listing = pets / "list.txt"
        listing.write_text("# all\n\ndog/2.png 1\r\n  cat/a b.png \t 0\ncat/b.JPG 10\n", "utf-8-sig")
        source = read_source(listing)
        assert source.domain.names == ("dog/2.png", "cat/a b.png", "cat/b.JPG")
        assert source.domain.items[1] == str(pets / "cat" / "a b.png")
        assert source.classes == ("0", "1", "10")
        assert source.labels.tolist() == [1, 0, 2]

    def test_target_may_lack_labels(self, pets: Path) -> None:
        listing = pets / "list.txt"
        listing.write_text("cat/a b.png\ndog/2.png dog\n")
        assert read_target(listing).names == ("cat/a b.png", "dog/2.png")
        assert labels_in(listing) == (None, "dog")

    def test_paths_may_start_from_the_folder_above(self, pets: Path) -> None:
        (pets / "lists").mkdir()
        listing = pets / "lists" / "all.txt"
        listing.write_text("cat/a b.png 0\ndog/2.png 1\n")
        assert read_source(listing).domain.items == (str(pets / "cat" / "a b.png"), str(pets / "dog" / "2.png"))
        (pets / "lists" / "cat").mkdir()
        (pets / "lists" / "cat" / "a b.png").touch()  # the list's own folder goes first
        assert "1 of the 2 files" in sentence(read_source, listing)

    def test_absolute_paths_and_upper_case_ending(self, pets: Path, tmp_path: Path) -> None:
        listing = tmp_path / "LIST.TXT"
        listing.write_text(f"{pets / 'dog' / '2.png'} dog\n")
        assert read_target(listing).items == (str(pets / "dog" / "2.png"),)

    def test_missing_files(self, pets: Path) -> None:
        listing = pets / "list.txt"
        listing.write_text("dog/2.png dog\ncat/x.png cat\ncat/y.png cat\n")
        message = sentence(read_source, listing)
        assert message.startswith("2 of the 3 files that ")
        assert f"cannot be found, the first is {pets / 'cat' / 'x.png'}: correct" in message

    def test_line_without_label(self, pets: Path) -> None:
        listing = pets / "list.txt"
        listing.write_text("# a comment\ncat/b.JPG cat\ncat/a b.png\n")
        assert f"Line 3 of {listing} is not a path and a label: write" in sentence(read_source, listing)

    def test_line_with_a_zero_byte(self, pets: Path) -> None:
        listing = pets / "list.txt"
        listing.write_bytes(b"cat/b.JPG cat\ncat\0b.png dog\n")
        assert f"Line 2 of {listing} is not a path" in sentence(read_target, listing)

    def test_empty(self, pets: Path) -> None:
        (pets / "list.txt").write_text("# nothing\n")
        assert "list.txt names no images: list at least one." in sentence(read_target, pets / "list.txt")

    def test_other_encoding(self, pets: Path) -> None:
        (pets / "list.txt").write_text("dog/2.png dog\n", "utf-16")
        assert "list.txt is not UTF-8 text: save it" in sentence(read_target, pets / "list.txt")

    def test_unreadable(self, pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(path: Path) -> bytes:
            raise PermissionError(13, "Permission denied", str(path))

        (pets / "list.txt").write_text("dog/2.png dog\n")
        monkeypatch.setattr(lists, "read_regular", refuse)
        assert "list.txt cannot be read (Permission denied): check" in sentence(read_target, pets / "list.txt")


class TestCsv:
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
    def test_columns_in_any_order(self, write: Write, encoding: str) -> None:
        folder = write("photos", "ä, b.png", "c.png")
        table = folder / "table.csv"
        table.write_text('label,size,path\nkätzchen,3,"ä, b.png"\ndog,4,c.png\n', encoding)
        source = read_source(table)
        assert source.domain.names == ("ä, b.png", "c.png")
        assert source.classes == ("dog", "kätzchen")
        assert source.labels.tolist() == [1, 0]
        assert labels_in(table) == ("kätzchen", "dog")

    def test_target_needs_no_label(self, pets: Path) -> None:
        (pets / "table.csv").write_text("path\ndog/2.png\n")
        assert labels_in(pets / "table.csv") == (None,)
        assert len(read_target(pets / "table.csv")) == 1

    @pytest.mark.parametrize(
        ("text", "column"),
        [("file,label\na,b\n", "path"), ("path\na\n", "label"), ("", "path"), ("path;label", "path")],
    )
    def test_missing_column(self, pets: Path, text: str, column: str) -> None:
        (pets / "table.csv").write_text(text)
        assert f"table.csv has no column '{column}': begin it" in sentence(read_source, pets / "table.csv")

    @pytest.mark.parametrize("row", ["dog/2.png,", "dog/2.png", ",dog", "a\0b.png,dog"])
    def test_incomplete_row(self, pets: Path, row: str) -> None:
        (pets / "table.csv").write_text(f"path,label\ncat/b.JPG,cat\n{row}\n")
        assert sentence(read_source, pets / "table.csv").startswith("Line 3 of ")

    def test_not_csv(self, pets: Path) -> None:
        (pets / "table.csv").write_text("path,label\n" + "x" * 200_000 + ",cat\n")
        assert "table.csv is not CSV (field larger than field limit" in sentence(read_target, pets / "table.csv")


class TestArrays:
    @pytest.mark.parametrize(
        ("shape", "kept"),
        [((3, 4, 5), (3, 4, 5)), ((3, 4, 5, 1), (3, 4, 5)), ((3, 4, 5, 3), (3, 4, 5, 3)), ((3, 4, 5, 4), (3, 4, 5, 4))],
    )
    def test_images(self, tmp_path: Path, shape: tuple[int, ...], kept: tuple[int, ...]) -> None:
        x = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
        np.savez(tmp_path / "x.npz", x=x, y=[10, 9, 10])
        source = read_source(tmp_path / "x.npz")
        assert isinstance(source.domain.items, np.ndarray)
        assert source.domain.items.shape == kept
        assert source.domain.items.tobytes() == x.tobytes()
        assert source.domain.names == ("0", "1", "2")
        assert source.domain.kind == "images"
        assert source.classes == ("9", "10")
        assert source.labels.tolist() == [1, 0, 1]

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_vectors(self, tmp_path: Path, dtype: type[np.floating]) -> None:
        np.savez(tmp_path / "x.npz", x=np.ones((2, 7), dtype), y=["b", "a"])
        source = read_source(tmp_path / "x.npz")
        assert source.domain.kind == "vectors"
        assert source.labels.tolist() == [1, 0]
        assert labels_in(tmp_path / "x.npz") == ("b", "a")

    def test_labels_are_counted_without_reading_the_vectors(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", x=np.full((2, 7), np.nan), y=[3, 10])  # which reading the vectors refuses
        assert label_counts(tmp_path / "x.npz") == {"3": 1, "10": 1}

    def test_target_without_labels(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", x=np.ones((2, 7)))
        assert labels_in(tmp_path / "x.npz") == (None, None)
        assert "x.npz has no array 'y': save it" in sentence(read_source, tmp_path / "x.npz")

    def test_without_x(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", images=np.ones((2, 7)))
        assert "x.npz has no array 'x': save it" in sentence(read_target, tmp_path / "x.npz")

    @pytest.mark.parametrize(
        "x",
        [
            np.zeros((2, 3), np.uint8),
            np.zeros((2, 3), np.int64),
            np.zeros((2, 3, 3, 3), np.float32),
            np.zeros((2, 3, 3, 2), np.uint8),
            np.zeros(2, np.float32),
            np.zeros((2, 3), np.complex64),
            np.array(["a", "b"]),
        ],
    )
    def test_wrong_x(self, tmp_path: Path, x: np.ndarray) -> None:
        np.savez(tmp_path / "x.npz", x=x, y=[0, 1])
        message = sentence(read_target, tmp_path / "x.npz")
        assert f"is {x.dtype} of shape {x.shape}: give uint8 images (N, H, W) or" in message

    @pytest.mark.parametrize("x", [np.zeros((0, 3)), np.zeros((2, 0)), np.zeros((2, 0, 4), np.uint8)])
    def test_empty_x(self, tmp_path: Path, x: np.ndarray) -> None:
        np.savez(tmp_path / "x.npz", x=x)
        assert f"is empty, its shape is {x.shape}: give" in sentence(read_target, tmp_path / "x.npz")

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_not_finite(self, tmp_path: Path, bad: float) -> None:
        x = np.zeros((5, 3), np.float32)
        x[3, 1] = bad
        np.savez(tmp_path / "x.npz", x=x)
        assert "has NaN or infinite values, first in row 3: remove" in sentence(read_target, tmp_path / "x.npz")

    @pytest.mark.parametrize("y", [np.zeros(2), np.zeros((2, 1), np.int64), np.array([True, False])])
    def test_wrong_y(self, tmp_path: Path, y: np.ndarray) -> None:
        np.savez(tmp_path / "x.npz", x=np.ones((2, 3)), y=y)
        assert f"y of {tmp_path / 'x.npz'} is {y.dtype} of shape" in sentence(read_source, tmp_path / "x.npz")

    def test_lengths_differ(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", x=np.ones((2, 3)), y=[0, 1, 2])
        assert "has 2 items in x but 3 labels in y: give one" in sentence(read_source, tmp_path / "x.npz")

    def test_objects_are_not_unpickled(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", x=np.array([{}, {}], dtype=object))
        assert "holds an array that cannot be loaded: save" in sentence(read_target, tmp_path / "x.npz")

    def test_not_an_npz(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", np.ones((2, 3)))
        (tmp_path / "x.npy").rename(tmp_path / "x.npz")
        assert "x.npz is not an .npz file: save" in sentence(read_target, tmp_path / "x.npz")

    def test_damaged(self, tmp_path: Path) -> None:
        path = tmp_path / "x.npz"
        np.savez_compressed(path, x=np.random.default_rng(0).normal(size=(50, 30)))
        content = bytearray(path.read_bytes())
        content[1000:1100] = bytes(100)
        path.write_bytes(content)
        assert "holds an array that cannot be loaded: save" in sentence(read_target, path)


class TestMappedArrays:
    """Large arrays of an .npz are not loaded; here every array is large."""

    @pytest.fixture(autouse=True)
    def all_are_large(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(npz, "MAP_FROM", 0)

    @given(
        x=hnp.arrays(
            st.sampled_from([np.float16, np.float32, np.float64, ">f4", np.uint8]),
            hnp.array_shapes(min_dims=2, max_dims=4, max_side=5),
            elements=st.integers(0, 200),
        ),
        order=st.sampled_from("CF"),
        name=st.sampled_from(["x", "x_train", "x" * 300]),
        before=st.integers(0, 99),
    )
    def test_equal_what_was_saved(self, x: np.ndarray, order: str, name: str, before: int) -> None:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "x.npz"
            np.savez(path, **{"b" * (before + 1): np.zeros(before), name: np.asarray(x, order=order)})
            loaded = npz.load_npz(path, [name, "none"])
        assert list(loaded) == [name]
        assert isinstance(loaded[name], np.memmap)
        assert loaded[name].dtype == x.dtype
        assert np.array_equal(loaded[name], x)
        with pytest.raises(ValueError, match="read-only"):
            loaded[name][...] = 0

    def test_a_compressed_array_is_loaded(self, tmp_path: Path) -> None:
        x = np.arange(12, dtype=np.float32).reshape(3, 4)
        np.savez_compressed(tmp_path / "x.npz", x=x, y=[0, 1, 1])
        source = read_source(tmp_path / "x.npz").domain
        assert source.mapped is None
        assert np.array_equal(source.items, x)

    def test_objects_are_not_unpickled(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", x=np.array([{}, {}], dtype=object))
        assert "holds an array that cannot be loaded: save" in sentence(read_target, tmp_path / "x.npz")

    def test_what_is_checked_of_an_array_is_checked(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", x=np.array([[0, 1], [np.nan, 0]], np.float32))
        assert "has NaN or infinite values, first in row 1: remove" in sentence(read_target, tmp_path / "x.npz")
        np.savez(tmp_path / "x.npz", x=np.zeros((0, 3)))
        assert "is empty, its shape is (0, 3): give" in sentence(read_target, tmp_path / "x.npz")

    def test_the_fingerprint_is_that_of_the_file_and_the_place_in_it(self, tmp_path: Path) -> None:
        path, zeros = tmp_path / "x.npz", np.zeros((2, 3), np.float32)
        np.savez(path, x_train=zeros, x_test=zeros, y_train=[0, 1])
        train, test = read_target(path / "train"), read_target(path / "test")
        assert train.fingerprint() != test.fingerprint()
        assert read_source(path / "train").domain.fingerprint() == train.fingerprint()
        (tmp_path / "link.npz").symlink_to(path)
        assert read_target(tmp_path / "link.npz" / "train").fingerprint() == train.fingerprint()
        os.utime(path, ns=(0, 0))
        assert read_target(path / "train").fingerprint() != train.fingerprint()

    def test_a_source_that_is_the_target_is_refused(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", x=np.eye(3), y=[0, 1, 1])
        source, target = read_source(tmp_path / "x.npz"), read_target(tmp_path / "x.npz")
        assert "3 of the 3 items of the target" in sentence(check_pair, source, target)

    def test_images_and_their_selection(self, tmp_path: Path) -> None:
        x = np.arange(48, dtype=np.uint8).reshape(3, 4, 4, 1)
        np.savez(tmp_path / "x.npz", x=x)
        domain = read_target(tmp_path / "x.npz")
        assert domain.kind == "images"
        chosen = domain.select([2, 0])
        assert np.array_equal(chosen.items, x[[2, 0], ..., 0])
        assert chosen.mapped is None
        assert chosen.fingerprint() != domain.fingerprint()


class TestDomains:
    def test_domain_of_paths(self, pets: Path) -> None:
        paths = [pets / "dog" / "2.png", str(pets / "cat" / "b.JPG")]
        for given_paths in (paths, np.array([str(path) for path in paths])):
            domain = domain_of(given_paths)
            assert domain.items == (str(pets / "dog" / "2.png"), str(pets / "cat" / "b.JPG"))
            assert domain.names == tuple(str(path) for path in paths)

    def test_domain_of_arrays(self) -> None:
        assert domain_of(np.zeros((2, 3)), "X").kind == "vectors"
        assert domain_of(np.zeros((2, 3, 3, 1), np.uint8), "X").items.shape == (2, 3, 3)

    def test_domain_of_anything_else(self, pets: Path) -> None:
        assert sentence(domain_of, np.zeros((2, 3), np.int64), "X").startswith("The array x of X is int64")
        assert sentence(domain_of, [1, 2], "X").startswith("X holds neither paths nor arrays")
        assert sentence(domain_of, [], "X") == "X names no images: list at least one."
        assert sentence(domain_of, [pets / "no.png"], "X").startswith("1 of the 1 files that X names cannot be found")

    def test_labelled(self) -> None:
        domain = domain_of(np.zeros((3, 2)))
        data = labelled(domain, np.array([7, -1, 7]))
        assert data.classes == ("-1", "7")
        assert data.labels.tolist() == [1, 0, 1]
        assert "x has 3 items but 2 labels: give one" in sentence(labelled, domain, [0, 1])
        assert "x has only the class '1': give at least two" in sentence(labelled, domain, [1, 1, 1])

    @given(numbers=st.sets(st.integers(-(10**9), 10**9), min_size=1))
    @settings(deadline=None, derandomize=True, database=None)
    def test_integers_sort_as_numbers(self, numbers: set[int]) -> None:
        assert sorted_classes(map(str, numbers)) == tuple(map(str, sorted(numbers)))

    def test_one_word_makes_all_names_text(self) -> None:
        assert sorted_classes(["10", "9", "cat", "9"]) == ("10", "9", "cat")

    def test_select(self, pets: Path) -> None:
        source = read_source(pets).select([3, 0])
        assert source.domain.names == ("dog/2.png", "cat/a b.png")
        assert source.domain.items == (str(pets / "dog" / "2.png"), str(pets / "cat" / "a b.png"))
        assert source.labels.tolist() == [1, 0]
        assert source.classes == ("cat", "dog")
        vectors = domain_of(np.arange(6.0).reshape(3, 2)).select(np.array([2, 1]))
        assert np.array_equal(vectors.items, [[4, 5], [2, 3]])
        assert vectors.names == ("2", "1")

    def test_selecting_all_copies_nothing(self, pets: Path) -> None:
        vectors = domain_of(np.arange(6.0).reshape(3, 2))
        assert vectors.select(np.arange(3)).items is vectors.items
        assert vectors.select([0, 2, 1]).names == ("0", "2", "1")
        source = read_source(pets)
        assert source.select(np.arange(len(source))).domain is source.domain

    def test_fingerprint_of_files(self, pets: Path, tmp_path: Path) -> None:
        first = read_target(pets).fingerprint()
        assert re.fullmatch(r"[0-9a-f]{64}", first)
        assert read_target(pets).fingerprint() == first
        (tmp_path / "link").symlink_to(pets)
        assert read_target(tmp_path / "link").fingerprint() == first
        assert read_target(pets).select([0, 1]).fingerprint() != first
        paths = [*read_target(pets).items]
        os.utime(pets / "dog" / "2.png", ns=(1, 1))
        touched = domain_of(paths).fingerprint()
        assert touched != first
        domain = domain_of(paths)
        (pets / "dog" / "2.png").unlink()
        assert domain.fingerprint() not in (first, touched)  # asked for the first time

    def test_fingerprint_of_arrays(self) -> None:
        x = np.arange(12, dtype=np.float32).reshape(4, 3)
        first = domain_of(x).fingerprint()
        assert domain_of(np.asfortranarray(x), "other").fingerprint() == first
        changed = x.copy()
        changed[2, 1] += 1
        others = {domain_of(other).fingerprint() for other in (changed, x.reshape(3, 4), x.astype(np.float64))}
        assert len(others - {first}) == 3


class TestPairs:
    def test_two_domains(self, pets: Path, write: Write) -> None:
        check_pair(read_source(pets), read_target(write("photos", "a.png")))

    def test_images_in_files_and_arrays_go_together(self, pets: Path) -> None:
        check_pair(read_source(pets), domain_of(np.zeros((2, 3, 3), np.uint8)))

    @pytest.mark.parametrize("form", ["same", "link", "inside", "list"])
    def test_shared_files(self, pets: Path, tmp_path: Path, form: str) -> None:
        (tmp_path / "link").symlink_to(pets)
        (pets / "list.txt").write_text("dog/2.png dog\n")
        target = {"same": pets, "link": tmp_path / "link", "inside": pets / "cat", "list": pets / "list.txt"}[form]
        shared = {"same": 4, "link": 4, "inside": 3, "list": 1}[form]
        message = sentence(check_pair, read_source(pets), read_target(target))
        assert message.startswith(f"{shared} of the {shared} items of the target {target} are also in the source")

    def test_some_shared_files(self, pets: Path, write: Write) -> None:
        folder = write("photos", "a.png", "b.png")
        (folder / "c.png").symlink_to(pets / "dog" / "2.png")
        assert sentence(check_pair, read_source(pets), read_target(folder)).startswith("1 of the 3 items")

    def test_same_arrays(self) -> None:
        x = np.eye(3)
        message = sentence(check_pair, labelled(domain_of(x), [0, 1, 1]), domain_of(x.copy()))
        assert message.startswith("3 of the 3 items")
        check_pair(labelled(domain_of(x), [0, 1, 1]), domain_of(x + 1))

    def test_mixed_kinds(self, pets: Path) -> None:
        vectors, images = domain_of(np.eye(3), "v.npz"), read_target(pets)
        expected = f"v.npz holds feature vectors but {pets} holds images: give two of the same kind."
        assert sentence(check_pair, labelled(vectors, [0, 1, 1]), images) == expected
        assert sentence(check_pair, read_source(pets), vectors) == expected

    def test_unequal_vectors(self) -> None:
        source, target = labelled(domain_of(np.eye(3), "s"), [0, 1, 1]), domain_of(np.eye(4), "t")
        assert sentence(check_pair, source, target).startswith("The vectors of s have 3 values and those of t have 4:")

    def test_vanished_files_are_compared_by_name(self, pets: Path) -> None:
        gone = Domain((pets / "no.png",), ("no.png",), "t")
        check_pair(read_source(pets), gone)
