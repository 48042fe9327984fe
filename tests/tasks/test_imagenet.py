"""imagenet on a folder of nine small pictures."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cser_ray.tasks import make_task
from cser_ray.tasks.imagenet import ImageNet, crop_box


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for part, each in (("train", 2), ("val", 1)):
        for name in ("cat", "dog", "emu"):
            (root / part / name).mkdir(parents=True)
            for number in range(each):
                height, width = rng.integers(30, 70, 2)
                pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{number}.JPEG")
    return root


@pytest.fixture
def task(root: Path) -> ImageNet:
    return ImageNet(data_dir=str(root))


def test_classes_are_the_folders(task: ImageNet) -> None:
    """Three folders, three classes, ln 3 nats."""
    assert task.classes == 3
    assert task.constant_loss() == pytest.approx(math.log(3))


def test_validation_is_carved_from_train_and_val_is_the_test_split(task: ImageNet, root: Path) -> None:
    """Every training file is in one of two splits; the test split is val/, in order."""
    splits = task.splits()
    assert len(splits.validation) == 1
    assert sorted(splits.train.files + splits.validation.files) == sorted(map(str, (root / "train").rglob("*.JPEG")))
    assert list(splits.test.files) == sorted(map(str, (root / "val").rglob("*.JPEG")))


def test_targets_are_the_folders_of_the_files(task: ImageNet) -> None:
    """Each training file's target is its folder's number."""
    train = task.splits().train
    assert train.targets.tolist() == [["cat", "dog", "emu"].index(Path(file).parent.name) for file in train.files]


def test_a_batch_is_square_and_standardised(task: ImageNet) -> None:
    """[rows, b, 3, 224, 224] float; evaluation is the same each time and is the central crop of the resized picture."""
    test = task.splits().test
    images, targets = test.batch(torch.tensor([[0, 1], [2, 0]]))
    assert images.shape == (2, 2, 3, 224, 224)
    assert targets.tolist() == [[0, 1], [2, 0]]
    assert images[0, 0].equal(images[1, 1])
    assert -2.2 < images.min() < images.max() < 2.7


def test_a_row_is_augmented_by_its_own_generator_alone(task: ImageNet) -> None:
    """Row 1 comes out the same beside any other row, and differs with its seed."""
    train, index = task.splits().train, torch.tensor([[0, 1], [2, 3]])
    rows, _ = train.batch(index, generators(1, 2))
    beside, _ = train.batch(torch.tensor([[4, 0], [2, 3]]), generators(5, 2))
    reseeded, _ = train.batch(index, generators(1, 7))
    assert rows[1].equal(beside[1])
    assert not rows[1].equal(reseeded[1])


def test_the_numbers_drawn_do_not_hang_on_the_pictures(task: ImageNet) -> None:
    """Pictures of different sizes leave a generator in the same state."""
    train, (one, other) = task.splits().train, generators(1, 1)
    train.batch(torch.tensor([[0, 1]]), [one])
    train.batch(torch.tensor([[3, 2]]), [other])
    assert one.get_state().equal(other.get_state())


@pytest.mark.parametrize(("width", "height"), [(500, 375), (40, 61), (1, 1), (900, 20)])
def test_a_crop_lies_in_the_picture_and_keeps_the_rule(width: int, height: int) -> None:
    """200 crops are inside the picture with sides between 3:4 and 4:3, but for rounding."""
    for draws in torch.rand(200, 23, generator=torch.Generator().manual_seed(0)):
        top, left, h, w = crop_box(draws, width, height)
        assert 0 <= top <= top + h <= height
        assert 0 <= left <= left + w <= width
        assert h * 3 / 4 - 1.5 <= w <= h * 4 / 3 + 1.5


def test_crops_cover_8_to_100_percent_of_the_area() -> None:
    """The mean share of 2 000 crops of a square is between .42 and .56, its extremes near .08 and 1."""
    draws = torch.rand(2000, 23, generator=torch.Generator().manual_seed(0))
    share = torch.tensor([h * w / 400**2 for _, _, h, w in (crop_box(row, 400, 400) for row in draws)])
    assert 0.42 < share.mean() < 0.56
    assert 0.075 < share.min() < 0.1
    assert share.max() > 0.9


def test_the_hash_follows_the_files(task: ImageNet, tmp_path: Path, root: Path) -> None:
    """A copy of the folder has the same hash; one with a test picture of another size has not."""
    hashes = []
    for name, side in (("same", None), ("other", 33)):
        for file in root.rglob("*.JPEG"):
            copy = tmp_path / name / file.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
        if side:
            Image.new("RGB", (side, side)).save(tmp_path / name / "val/cat/0.JPEG")
        hashes.append(ImageNet(data_dir=str(tmp_path / name)).content_hash())
    assert hashes[0] == task.content_hash()
    assert hashes[1] != task.content_hash()


def test_missing_folders_are_told_with_the_way_to_get_them(tmp_path: Path) -> None:
    """One sentence: what was looked for and where, the page, the layout and the option; the size is known before."""
    task = make_task("imagenet", data_dir=str(tmp_path))
    assert task.classes == 1000
    with pytest.raises(FileNotFoundError) as caught:
        task.splits()
    for part in (
        f"train/ and val/ in {tmp_path}",
        "https://image-net.org/download.php",
        "train/CLASS/*.JPEG",
        "--data-dir",
    ):
        assert part in str(caught.value)


def test_val_must_have_the_classes_of_train(root: Path, tmp_path: Path) -> None:
    """A val/ of other classes is refused."""
    for part, name in (("train", "cat"), ("train", "dog"), ("val", "cat"), ("val", "unsorted")):
        (tmp_path / part / name).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(tmp_path / part / name / "0.JPEG")
    with pytest.raises(ValueError, match=r"differ in 2 \(as dog\): the validation pictures must lie in class folders"):
        ImageNet(data_dir=str(tmp_path)).splits()


def test_resnet50_is_the_model() -> None:
    """25 557 032 parameters for 1 000 classes."""
    with torch.device("meta"):
        assert sum(p.numel() for p in make_task("imagenet").model().parameters()) == 25_557_032
