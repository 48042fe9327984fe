"""cifar100 on 240 random images, written as the published files are and read by torchvision's own code."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR100

from cser_ray.tasks import make_task
from cser_ray.tasks.cifar100 import Cifar100, crop_and_flip

TRAIN, TEST = 200, 40


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def write(root: Path, monkeypatch: pytest.MonkeyPatch, brighter: int = 0) -> dict[str, dict[str, object]]:
    """Write the three files under `root` and let torchvision expect their checksums in place of the published ones."""
    rng = np.random.default_rng(0)
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    contents: dict[str, dict[str, object]] = {
        "meta": {"fine_label_names": [f"f{i}" for i in range(100)], "coarse_label_names": [f"c{i}" for i in range(20)]}
    }
    for name, count in (("train", TRAIN), ("test", TEST)):
        data = rng.integers(0, 250, (count, 3072), dtype=np.uint8) + np.uint8(brighter)
        contents[name] = {
            "data": data,
            "fine_labels": [i % 100 for i in range(count)],
            "coarse_labels": [i * 7 % 20 for i in range(count)],
        }
    sums = {}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": sums["meta"]})
    return contents


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cifar100:
    write(tmp_path, monkeypatch)
    return Cifar100(data_dir=str(tmp_path))


def test_images_keep_their_planes_and_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Test images are the stored red, green and blue planes in order, with the fine labels."""
    stored = write(tmp_path, monkeypatch)["test"]
    test = Cifar100(data_dir=str(tmp_path)).splits().test
    assert test.images.equal(torch.from_numpy(stored["data"]).view(TEST, 3, 32, 32))
    assert test.targets.tolist() == stored["fine_labels"]


def test_a_tenth_of_the_training_images_validates(task: Cifar100) -> None:
    """180 / 20 / 40 of 200 and 40 images, none in two splits."""
    splits = task.splits()
    parts = [splits.train, splits.validation, splits.test]
    assert [len(part) for part in parts] == [180, 20, 40]
    assert len({image.numpy().tobytes() for part in parts for image in part.images}) == TRAIN + TEST


def test_coarse_labels_come_from_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 classes, each training image with its own coarse label."""
    stored = write(tmp_path, monkeypatch)["train"]
    task = make_task("cifar100", data_dir=str(tmp_path), coarse_labels=True)
    label = {image.tobytes(): label for image, label in zip(stored["data"], stored["coarse_labels"], strict=True)}
    train = task.splits().train
    assert task.classes == 20
    assert train.targets.tolist() == [label[image.numpy().tobytes()] for image in train.images]


def test_training_images_are_standardised_channel_by_channel(task: Cifar100) -> None:
    """Unaugmented training images have mean 0 and deviation 1 in each channel."""
    train = task.splits().train
    images, _ = train.batch(torch.arange(len(train))[None])
    assert images.dtype == torch.float32
    torch.testing.assert_close(images.mean((0, 1, 3, 4)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(images.std((0, 1, 3, 4)), torch.ones(3), atol=1e-4, rtol=0)


def test_a_row_is_augmented_by_its_own_generator_alone(task: Cifar100) -> None:
    """Row 1 comes out the same beside any other rows, differs with its seed, and is augmented."""
    train, index = task.splits().train, torch.arange(12).view(3, 4)
    rows, _ = train.batch(index, generators(1, 2, 3))
    others, _ = train.batch(index[[2, 1]], generators(9, 2))
    reseeded, _ = train.batch(index, generators(1, 7, 3))
    assert rows[1].equal(others[1])
    assert not rows[1].equal(reseeded[1])
    assert not rows[1].equal(train.batch(index)[0][1])


def test_images_of_a_row_are_augmented_apart(task: Cifar100) -> None:
    """The same image eight times in a row comes out in several forms."""
    (row,), _ = task.splits().train.batch(torch.zeros(1, 8, dtype=torch.long), generators(1))
    assert len({image.numpy().tobytes() for image in row}) > 4


@pytest.mark.parametrize(
    ("draws", "expected"),
    [
        ((0.5, 0.5, 0.9), lambda x: x),
        ((0.5, 0.5, 0.1), lambda x: x.flip(-1)),
        ((0.0, 0.5, 0.9), lambda x: torch.nn.functional.pad(x, [0, 0, 4, 0])[..., :32, :]),
        ((0.5, 0.999, 0.9), lambda x: torch.nn.functional.pad(x, [0, 4])[..., 4:]),
    ],
)
def test_a_crop_shifts_by_up_to_four_into_black_and_a_flip_mirrors(draws: tuple[float, ...], expected: object) -> None:
    """Middle draws leave an image as it is; extreme ones move it by 4 pixels."""
    images = torch.randint(1, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert crop_and_flip(images, torch.tensor([draws] * 2)).equal(expected(images))


def test_the_hash_follows_the_data_and_the_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal files have equal hashes; coarse labels or brighter pixels have others."""
    tasks = []
    for folder, brighter, coarse in (("a", 0, False), ("b", 0, False), ("c", 0, True), ("d", 1, False)):
        write(tmp_path / folder, monkeypatch, brighter)
        tasks.append(Cifar100(data_dir=str(tmp_path / folder), coarse_labels=coarse))
        tasks[-1].splits()
    hashes = [task.content_hash() for task in tasks]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def test_missing_files_are_told_with_the_way_to_get_them(tmp_path: Path) -> None:
    """One sentence: what was looked for and where, the file, its page, the layout and the option."""
    with pytest.raises(FileNotFoundError) as caught:
        make_task("cifar100", data_dir=str(tmp_path)).splits()
    message = str(caught.value)
    for part in (
        f"train, test, meta in {tmp_path}",
        "cifar-100-python.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        "--data-dir",
    ):
        assert part in message


def test_a_file_that_is_not_the_published_one_is_never_unpickled(task: Cifar100, tmp_path: Path) -> None:
    """A wrong checksum is an error before the pickle's code runs."""
    trap = tmp_path / "sprung"
    (tmp_path / "cifar-100-python/train").write_bytes(b"cpathlib\nPath.touch\n(cpathlib\nPath\n(V%a\ntRtR." % str(trap))
    with pytest.raises(ValueError, match=r"not the published ones .* unpack cifar-100-python.tar.gz again"):
        task.splits()
    assert not trap.exists()
