"""Tar archives of strangers: a .tar of class folders, and wds/ shards."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import pickle
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pictures import CPU, SMALL, process, write_images
from PIL import Image
from tars import Member, member, packed
from timm.data.readers.reader_image_in_tar import ReaderImageInTar

from vitcod_cli.data.archives import DamagedArchiveError, members
from vitcod_cli.data.augmentation import AugmentationSettings
from vitcod_cli.data.calibration import calibration_images
from vitcod_cli.data.datasets import open_dataset
from vitcod_cli.data.images import ImageData
from vitcod_cli.data.loaders import eval_loader, train_loader
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.errors import VitcodError
from vitcod_cli.reporting import SilentReporter

PLAIN = AugmentationSettings(no_aug=True)
Entry = tuple[str, bytes]


def picture(shade: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 24), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, *members: Member, mode: str = "w") -> Path:
    path.write_bytes(packed(members, mode))
    return path


def sample(index: int, label: object = None) -> list[Member]:
    cls = str(index if label is None else label).encode()
    return [member(f"{index:03}.png", picture(index)), member(f"{index:03}.cls", cls)]


def shards(root: Path, *counts: int) -> Path:
    """x-0.tar, x-1.tar, ... with so many images each, labels 0, 1, ..."""
    number = itertools.count()
    for shard, count in enumerate(counts):
        write_tar(root / f"x-{shard}.tar", *(entry for _ in range(count) for entry in sample(next(number))))
    return root


def opened(root: Path, split: str, reporter: SilentReporter | None = None, **options: Any) -> ImageData:
    pytest.importorskip("webdataset")
    settings = DataSettings(dataset="wds/x", data_path=str(root), train_split=split, val_split=split, **options)
    return open_dataset(settings, "val", num_classes=100, reporter=reporter)


def labels(data: ImageData, reporter: SilentReporter | None = None, workers: int = 0) -> list[int]:
    loader = eval_loader(data, SMALL, batch_size=3, workers=workers, device=CPU, reporter=reporter)
    return sorted(int(target) for _, targets in loader for target in targets)


# A .tar of class folders


def tar_data(path: Path, reporter: SilentReporter | None = None, **options: Any) -> ImageData:
    return open_dataset(DataSettings(data_path=str(path), **options), "val", num_classes=None, reporter=reporter)


def test_order_and_labels_of_a_tar_are_timms(tmp_path: Path) -> None:
    """Class folders at several depths, classes as archives within, names with numbers."""
    inner = write_tar(tmp_path / "inner", *(member(f"{i}.png", picture(i)) for i in (10, 9, 1)))
    deep = write_tar(tmp_path / "deep", member("./x/1.png", picture()), member("y/z/1.png", picture()))
    path = write_tar(
        tmp_path / "val.tar",
        member("./b/2.png", picture()),
        member("b/10.png", picture()),
        member("top/a/1.JPG", picture()),
        member("/abs/c/1.jpeg", picture()),
        member("n2.tar", inner.read_bytes()),
        member("n10.tar", inner.read_bytes()),
        member("sub/deep.tar", deep.read_bytes()),
        member("b/notes.txt", b"none"),
    )
    reader, ours = ReaderImageInTar(str(path)), tar_data(path)
    assert [ours.describe(i) for i in range(len(ours))] == [
        f"{path}: {reader.filename(i)}" for i in range(len(reader))
    ]
    assert ours.targets.tolist() == reader.targets.tolist()
    assert len({*ours.targets.tolist()}) == 7
    for index in range(len(ours)):
        assert ours.load(index)[0].tobytes() == Image.open(reader[index][0]).tobytes()


def test_hidden_links_and_devices_in_a_tar(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "val.tar",
        member("a/1.png", picture()),
        member("a/._1.png", picture()),
        member(".git/x.png", picture()),
        member("__MACOSX/a/1.png", picture()),
        member("../../etc/x.png", picture()),
        member("a/link.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("a/hard.png", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
        member("a/pipe.png", type=tarfile.FIFOTYPE),
        member("a/device.png", type=tarfile.CHRTYPE),
        member("a/folder.png", type=tarfile.DIRTYPE),
        member("b\x1b[2J/2.png", picture()),
    )
    reporter = SilentReporter()
    data = tar_data(path, reporter)
    assert data.targets.tolist() == [0, 1]
    assert reporter.warnings[0].startswith(f"Left out in {path}: 4 hidden or system names (")


def cut(content: bytes) -> bytes:
    return content[: 2 * 512 + 100]


def without_end(content: bytes) -> bytes:
    return content.rstrip(b"\0") + bytes(-len(content.rstrip(b"\0")) % 512)


def with_damaged_header(content: bytes) -> bytes:
    """tarfile takes it for the end."""
    second = content.index(b"a/2.png")
    return content[:second] + b"X" + content[second + 1 :]


def claiming(size: int) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        info = tarfile.TarInfo("a/3.png")
        info.size = size
        return content.rstrip(b"\0") + bytes(-len(content.rstrip(b"\0")) % 512) + info.tobuf(tarfile.GNU_FORMAT)

    return change


def long_name(content: bytes) -> bytes:
    """A name that is said to have a terabyte."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 10**12
    return info.tobuf(tarfile.GNU_FORMAT) + content


def backwards(content: bytes) -> bytes:
    """An extended header that says the next member has -10 KiB: tarfile of some Pythons goes round for ever."""
    info = tarfile.TarInfo("x")
    info.type = tarfile.XHDTYPE
    record = b"15 size=-10240\n"
    info.size = len(record)
    return info.tobuf(tarfile.USTAR_FORMAT) + record + bytes(512 - len(record)) + content


DAMAGES = {
    "cut": cut,
    "without its end": without_end,
    "a damaged header": with_damaged_header,
    "a terabyte claimed": claiming(10**12),
    "a negative size": claiming(-1024),
    "a name of a terabyte": long_name,
    "going backwards": backwards,
    "no archive": lambda content: b"hello" * 1000,
    "empty": lambda content: b"",
    "gzip bomb": lambda content: gzip.compress(bytes(50 << 20)),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_half_a_tar_is_never_taken_for_a_whole(tmp_path: Path, case: str) -> None:
    path = write_tar(tmp_path / "val.tar", member("a/1.png", picture()), member("a/2.png", picture()))
    path.write_bytes(DAMAGES[case](path.read_bytes()))
    with pytest.raises(VitcodError, match=r"--data-path .*val\.tar can't be read \(.*fetch or write it anew"):
        tar_data(path)


@pytest.mark.parametrize("case", ["cut", "a damaged header", "no archive"])
def test_half_a_tar_within_a_tar(tmp_path: Path, case: str) -> None:
    inner = write_tar(tmp_path / "i", member("a/1.png", picture()), member("a/2.png", picture())).read_bytes()
    path = write_tar(tmp_path / "val.tar", member("c.tar", DAMAGES[case](inner)), member("d.tar", inner))
    with pytest.raises(VitcodError, match="can't be read"):
        tar_data(path)


def test_images_of_a_tar_are_bounded_and_may_change(tmp_path: Path) -> None:
    """A sparse file of 300 MiB is one header; a tar that shrinks while it is read has bad images."""
    path = write_tar(tmp_path / "val.tar", *(member(f"a/{i}.png", picture()) for i in range(3)))
    data, reporter = tar_data(path), SilentReporter()
    os.truncate(path, 1500)
    assert labels(data, reporter) == [0]
    assert len(reporter.warnings) == 2
    with path.open("wb") as file:
        file.write(claiming(300 << 20)(b""))
        file.truncate(512 + (300 << 20) + 1024)
    (reason,) = _reasons(tar_data(path))
    assert "more than 268,435,456" in reason


def _reasons(data: ImageData) -> list[str]:
    reporter = SilentReporter()
    list(eval_loader(data, SMALL, batch_size=3, workers=0, device=CPU, reporter=reporter))
    return reporter.warnings


def test_no_cache_of_pickles_is_read(tmp_path: Path) -> None:
    """timm keeps one beside large archives."""
    path = write_tar(tmp_path / "val.tar", member("a/1.png", picture()))
    (tmp_path / "_val_tarinfos.pickle").write_bytes(pickle.dumps({"tartrees": ["no"]}))
    assert len(tar_data(path)) == 1


def test_tar_without_images_or_classes(tmp_path: Path) -> None:
    with pytest.raises(VitcodError, match="holds no images"):
        tar_data(write_tar(tmp_path / "a.tar", member("a/notes.txt", b"x")))
    with pytest.raises(VitcodError, match=r"1\.png in .* lies beside the class folders"):
        tar_data(write_tar(tmp_path / "b.tar", member("./1.png", picture()), member("a/1.png", picture())))


def test_class_map_of_a_tar(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", member("a/1.png", picture()), member("b/1.png", picture()))
    (tmp_path / "map.json").write_text('{"b": 7}')
    reporter = SilentReporter()
    data = tar_data(path, reporter, class_map=str(tmp_path / "map.json"))
    assert data.targets.tolist() == [7]
    assert "1 class folders are not in --class-map" in reporter.warnings[0]


# Shards


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("suffix", ["", "|7"])
def test_evaluation_takes_either_spelling(tmp_path: Path, workers: int, suffix: str) -> None:
    data = opened(shards(tmp_path, 4, 3), "x-{0..1}.tar" + suffix)
    reporter = SilentReporter()
    assert labels(data, reporter, workers) == list(range(7))
    assert reporter.warnings == []


def test_compressed_shards_are_read(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar.gz", *sample(1), *sample(2), mode="w:gz")
    assert labels(opened(tmp_path, "x.tar.gz")) == [1, 2]


def timms(root: Path, split: str, training: bool, **options: Any) -> list[int]:
    from timm.data.readers.reader_wds import ReaderWds

    reader = ReaderWds(str(root), split=split, is_training=training, **options)
    reader.set_epoch(3)
    return [target for _, target in reader]


@pytest.mark.parametrize("training", [True, False])
def test_order_of_shards_is_timms(tmp_path: Path, training: bool) -> None:
    from vitcod_cli.data.shard_list import find_shards
    from vitcod_cli.data.shards import ShardReader

    pytest.importorskip("webdataset")
    split = "x-{0..5}.tar|17"
    shards(tmp_path, 4, 3, 1, 6, 2, 1)
    found = find_shards(str(tmp_path), split, "--val-split")
    reader = ShardReader(found, training=training, batch_size=4, seed=5)
    reader.set_epoch(3)
    assert [target for _, target in reader] == timms(tmp_path, split, training, batch_size=4, seed=5)


@pytest.mark.parametrize("case", [case for case in DAMAGES if case != "gzip bomb"])
@pytest.mark.parametrize("workers", [0, 1])
def test_half_a_shard_is_never_taken_for_a_whole(tmp_path: Path, case: str, workers: int) -> None:
    path = write_tar(tmp_path / "x-0.tar", member("a/1.png", picture()), member("a/2.png", picture()))
    path.write_bytes(DAMAGES[case](path.read_bytes()))
    with pytest.raises(VitcodError, match=r"^The shard .*x-0\.tar can't be read to its end \(.*fetch it anew"):
        labels(opened(tmp_path, "x-0.tar"), SilentReporter(), workers)


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_compressed_shard_that_is_cut(tmp_path: Path, mode: str) -> None:
    entries = [member(f"{i}.png", os.urandom(20_000)) for i in range(5)]
    path = write_tar(tmp_path / "x.tar", *entries, mode=mode)
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(VitcodError, match="can't be read to its end"):
        labels(opened(tmp_path, "x.tar"), SilentReporter())


def test_a_shard_of_nothing_but_compressed_zeros(tmp_path: Path) -> None:
    """To tar it is an empty archive; nothing more of it is unpacked."""
    (tmp_path / "x.tar").write_bytes(gzip.compress(bytes(50 << 20)))
    assert labels(opened(tmp_path, "x.tar")) == []


def test_a_claim_of_a_terabyte_in_a_compressed_shard(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(gzip.compress(claiming(10**12)(b"") + bytes(1 << 20)))
    with pytest.raises(VitcodError, match="claims 1,000,000,000,000 bytes"):
        labels(opened(tmp_path, "x.tar"))


BAD_SAMPLES = {
    "no label": ([member("1.png", picture())], r"\.cls is missing"),
    "a word for a label": (sample(1, "cat"), r"label in \.cls is no whole number"),
    "a fraction for a label": (sample(1, 1.5), r"label in \.cls is no whole number"),
    "a negative label": (sample(1, -1), r"label in \.cls is no whole number"),
    "a huge label": (sample(1, 10**30), r"label in \.cls is no whole number"),
    "a long label": (sample(1, "9" * 5000), r"\.cls has 5,000 bytes"),
    "no image": ([member("1.cls", b"1"), member("1.tif", b"II")], "no image of the kinds jpg, jpeg, png, webp"),
    "a pickle": ([member("1.cls", b"1"), member("1.pyd", pickle.dumps(1))], "no image"),
    "EPS": ([member("1.cls", b"1"), member("1.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n")], "not an image"),
    "text": ([member("1.cls", b"1"), member("1.jpg", b"hello")], "not an image"),
    "two images of a kind": ([*sample(1), member("001.png", picture())], r"two members \.png"),
}


@pytest.mark.parametrize("case", BAD_SAMPLES)
@pytest.mark.parametrize("workers", [0, 1])
def test_bad_samples_are_named(tmp_path: Path, case: str, workers: int) -> None:
    entries, says = BAD_SAMPLES[case]
    path = write_tar(tmp_path / "x.tar", *sample(50), *entries, *sample(60))
    data, reporter = opened(tmp_path, "x.tar|3"), SilentReporter()
    assert labels(data, reporter, workers) == [50, 60]
    (warning,) = reporter.warnings
    assert re.search(rf"^Can't read {path}: 0*1 \(.*{says}", warning)
    with pytest.raises(VitcodError, match="--max-bad-images 0"):
        labels(opened(tmp_path, "x.tar", max_bad_images=0))


def test_bad_samples_are_replaced_in_training(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", *sample(1, "cat"), *sample(2), *sample(3))
    loader = train_loader(opened(tmp_path, "x.tar|4"), SMALL, PLAIN, batch_size=4, workers=0, device=CPU, seed=0)
    assert [len(targets) for _, targets, _ in loader] == [4]


def test_what_is_no_sample_is_passed_over(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "x.tar",
        member("README.md", b"hello"),
        member("._001.png", b"Mac OS X"),
        member("a/._001.png", b"Mac OS X"),
        member("a/link.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        *sample(1),
        member("pipe.cls", type=tarfile.FIFOTYPE),
    )
    reporter = SilentReporter()
    assert labels(opened(tmp_path, "x.tar|1"), reporter) == [1]
    assert reporter.warnings == []


def test_a_label_beyond_the_classes(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", *sample(1, 100))
    with pytest.raises(VitcodError, match="an image of wds/x has the label 100, but labels go from 0 to 99"):
        labels(opened(tmp_path, "x.tar"))


@pytest.mark.parametrize(
    ("split", "says"),
    [
        ("x-{0..999999999}.tar", "more than 100,000 shards"),
        ("x-{0..99999}{0..9}.tar", "more than 100,000 shards"),
        ("{" * 2000 + "0..1" + "}" * 2000 + ".tar", "shards|pattern"),
        ("x-{0..1}.tar|many", r"number of images, such as x-\{0\.\.1\}\.tar\|50000"),
        ("x-{0..1}.tar|0", "number of images"),
        ("x-{0..1}.tar|-5", "number of images"),
        ("x-{0..1}.tar|1e4", "number of images"),
        ("x-{0..1}.tar|٣", "number of images"),
        ("x-{0..1}.tar|" + "9" * 4000, "number of images"),
        ("x-{0..3}.tar", r"2 of the 4 shards .* are no files in .* \(x-2\.tar, x-3\.tar\)"),
        ("pipe:touch hacked.tar", "1 of the 1 shards"),
        ("http://localhost:1/x.tar", "1 of the 1 shards"),
        ("/dev/zero::x-0.tar", "1 of the 2 shards"),
        ("validation", "is no split of the shards"),
    ],
)
def test_patterns_are_checked_at_the_start(
    tmp_path: Path, split: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shards(tmp_path, 2, 2))
    with pytest.raises(VitcodError, match=says) as error:
        opened(tmp_path, split)
    assert "--val-split" in str(error.value)
    assert not (tmp_path / "hacked.tar").exists()


def test_no_shell_for_a_data_path_that_is_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """webdataset runs what stands behind ``pipe:``."""
    monkeypatch.chdir(tmp_path)
    for path in ("pipe:touch hacked;", "", "http://localhost:1"):
        with pytest.raises(VitcodError):
            opened(Path(path) if path else "", "x.tar")  # type: ignore[arg-type]
    assert not (tmp_path / "hacked").exists()
    (tmp_path / "pipe:touch hacked;").mkdir()
    with pytest.raises(VitcodError, match="1 of the 1 shards"):
        opened("pipe:touch hacked;", "x.tar")  # type: ignore[arg-type]
    assert not (tmp_path / "hacked").exists()


def index_of(**changes: Any) -> dict[str, Any]:
    entry = {"name": "t", "filenames": ["x-0.tar", "x-1.tar"], "shard_lengths": [2, 3], "num_samples": 5}
    return {"splits": {"t": {**entry, **changes}}}


def test_an_index_names_the_shards_and_their_images(tmp_path: Path) -> None:
    shards(tmp_path, 2, 3)
    (tmp_path / "_info.json").write_text(json.dumps(index_of()))
    assert (len(opened(tmp_path, "t")), labels(opened(tmp_path, "t"))) == (5, [0, 1, 2, 3, 4])
    assert len(opened(tmp_path, "x-1.tar")) == 3


INDICES: dict[str, str] = {
    "no JSON": "{",
    "deep": "[" * 100_000,
    "a list": "[]",
    "a name twice": '{"splits": {}, "splits": {}}',
    "absolute": json.dumps(index_of(filenames=["/etc/passwd", "x-1.tar"])),
    "above": json.dumps(index_of(filenames=["../x-0.tar", "x-1.tar"])),
    "command": json.dumps(index_of(filenames=["pipe:touch hacked", 5])),
    "too few": json.dumps(index_of(shard_lengths=[5])),
    "another sum": json.dumps(index_of(num_samples=50_000)),
    "negative": json.dumps(index_of(shard_lengths=[-1, 6])),
    "text": json.dumps(index_of(num_samples="5")),
    "true": json.dumps(index_of(shard_lengths=[True, 4])),
    "huge": json.dumps(index_of(num_samples=10**30, shard_lengths=[10**30, 0])),
    "nothing": json.dumps({"splits": {"t": {}}}),
    "null": json.dumps({"splits": None}),
}


@pytest.mark.parametrize("case", INDICES)
def test_an_index_that_lies_is_refused(tmp_path: Path, case: str) -> None:
    (shards(tmp_path, 2, 3) / "_info.json").write_text(INDICES[case])
    with pytest.raises(VitcodError, match=r"_info\.json is no index of shards"):
        opened(tmp_path, "t")


def test_an_index_that_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(shards(tmp_path, 1) / "info.json")
    with pytest.raises(VitcodError, match="not a regular file"):
        opened(tmp_path, "x-0.tar")
    (tmp_path / "info.json").unlink()
    (tmp_path / "info.json").touch()
    os.truncate(tmp_path / "info.json", 17 << 20)
    with pytest.raises(VitcodError, match="more than 16,777,216"):
        opened(tmp_path, "x-0.tar")


def test_a_wrong_count_is_said(tmp_path: Path) -> None:
    data, reporter = opened(shards(tmp_path, 2, 3), "x-{0..1}.tar|50000"), SilentReporter()
    assert labels(data, reporter) == [0, 1, 2, 3, 4]
    assert "should have 50000 images and has 5" in reporter.warnings[0]


def test_labels_in_json(tmp_path: Path) -> None:
    """An index may say so; -1 leaves an image out, as in timm."""
    entries = []
    for index, content in enumerate(
        [b'{"l": 5}', b'{"l": -1}', b'{"l": true}', b"[" * 10_000, b"{}", b'{"l": 1, "l": 2}']
    ):
        entries += [member(f"{index}.png", picture()), member(f"{index}.json", content)]
    write_tar(tmp_path / "x.tar", *entries)
    index = index_of(filenames=["x.tar"], shard_lengths=[6], num_samples=6, alt_label="l")
    (tmp_path / "_info.json").write_text(json.dumps(index))
    reporter = SilentReporter()
    assert labels(opened(tmp_path, "t"), reporter) == [5]
    assert len([text for text in reporter.warnings if "no whole number" in text]) == 4


@pytest.mark.parametrize("workers", [0, 3])
def test_training_gives_every_process_as_many_batches(tmp_path: Path, workers: int) -> None:
    """One with fewer would keep the others waiting for ever; there are fewer shards than workers."""
    data = opened(shards(tmp_path, 5, 1), "x-{0..1}.tar|6")
    counts = []
    for rank in range(2):
        with process(rank, 2):
            loader = train_loader(data, SMALL, PLAIN, batch_size=2, workers=workers, device=CPU, seed=0)
            counts.append((len(loader), len(list(loader))))
    assert counts[0] == counts[1]
    assert counts[0][0] == counts[0][1] > 0


@pytest.mark.parametrize("workers", [0, 1])
def test_a_process_without_a_shard_does_not_train_for_ever(tmp_path: Path, workers: int) -> None:
    data = opened(shards(tmp_path, 4), "x-0.tar|4")
    with process(1, 2):
        loader = train_loader(data, SMALL, PLAIN, batch_size=2, workers=workers, device=CPU, seed=0)
        with pytest.raises(VitcodError, match="no full batch of readable images"):
            list(loader)
    data = opened(write_tar(tmp_path / "x-1.tar").parent, "x-1.tar|4")
    with pytest.raises(VitcodError, match="no full batch of readable images"):
        list(train_loader(data, SMALL, PLAIN, batch_size=2, workers=workers, device=CPU, seed=0))


def test_calibration_on_shards_of_unknown_length(tmp_path: Path) -> None:
    """A count without end asks for no memory."""
    data = opened(shards(tmp_path, 3), "x-0.tar")
    images = calibration_images(data, SMALL, 10**12, workers=0, device=CPU, seed=0)
    assert len(images) == 3
    assert torch.equal(images.tensor(slice(None)), images.tensor(torch.arange(3)))
    with pytest.raises(VitcodError, match="0 readable training images are too few for calibration"):
        calibration_images(
            opened(write_tar(tmp_path / "x-9.tar").parent, "x-9.tar"), SMALL, 5, workers=0, device=CPU, seed=0
        )


def test_a_library_that_breaks_off_is_one_sentence() -> None:
    from test_sources import Stream

    from vitcod_cli.data.streams import StreamImages

    class Broken(Stream):
        def __iter__(self) -> Any:
            yield from itertools.islice(super().__iter__(), 2)
            raise ConnectionResetError(104, "Connection reset by peer")

    data = StreamImages("hfids/x", lambda training, batch_size, seed: Broken(10), 10, 10)
    for workers in (0, 1):
        with pytest.raises(VitcodError, match=r"^--dataset hfids/x can't be read to its end \(Conn.*by peer\)"):
            labels(data, workers=workers)


def test_members_of_an_archive_take_no_memory(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", *(member(f"{index}") for index in range(100)))
    with path.open("rb") as file:
        for archive, _ in members(file):
            assert archive.members == []
    path.write_bytes(path.read_bytes()[100:])
    with path.open("rb") as file, pytest.raises(DamagedArchiveError):
        next(members(file))


def test_folder_of_a_tar_among_class_folders_is_nothing_special(tmp_path: Path) -> None:
    """A FIFO called val.tar is no archive."""
    os.mkfifo(tmp_path / "val.tar")
    with pytest.raises(VitcodError, match="is not a folder"):
        tar_data(tmp_path / "val.tar")
    write_images(tmp_path, {"x.tar/val/a": 1})
    assert len(tar_data(tmp_path / "x.tar")) == 1
