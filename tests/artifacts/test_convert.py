"""``vitcod convert``: both ways, every tensor bit for bit, polarity turned at this border only."""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Cli as InProcess
from safetensors.numpy import load_file

from vitcod_cli.artifacts.attention_map import read_attention_map
from vitcod_cli.artifacts.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from vitcod_cli.artifacts.files import sha256_of
from vitcod_cli.artifacts.mask import Mask, read_mask, write_mask
from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.artifacts.npz_file import write_npz
from vitcod_cli.artifacts.published import mask_beside
from vitcod_cli.commands.convert import convert
from vitcod_cli.errors import VitcodError
from vitcod_cli.export.convert_settings import ConvertOptions
from vitcod_cli.masks.order_settings import OrderSettings
from vitcod_cli.masks.polarize import polarized
from vitcod_cli.masks.settings import MaskOptions
from vitcod_cli.model.build import build_model
from vitcod_cli.steps.mask import make_mask

KWARGS = ["patch_size=8", "embed_dim=24", "depth=2", "num_heads=3"]
Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def run(source: Path, capsys: pytest.CaptureFixture[str], **values: object) -> list[Path]:
    """The files that converting ``source`` says it has written."""
    convert(ConvertOptions.from_flat({"source": str(source), **values}))
    return [Path(line) for line in capsys.readouterr().out.splitlines()]


def random_weights(config: ModelConfig) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {k: torch.randn_like(v) for k, v in build_model(config).state_dict().items()}


def random_mask() -> np.ndarray:
    """Published polarity: True = pruned."""
    return (np.random.default_rng(0).random((2, 3, 17, 17)) < 0.5) & ~np.eye(17, dtype=bool)


def load_reference(path: Path) -> dict[str, object]:
    with torch.serialization.safe_globals([argparse.Namespace]):
        content: dict[str, object] = torch.load(path, weights_only=True)
    return content


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


@pytest.fixture
def published(tmp_path: Path, tiny_config: ModelConfig) -> Path:
    """A published checkpoint of a low-rank model, in half precision to see that bits are kept."""
    weights = random_weights(tiny_config.changed(svd_type="mix_head_fc_qk"))
    args = argparse.Namespace(model="custom", svd_type="mix_head_fc_qk", lr=1e-4, betas=(0.9, 0.99), mask_path="")
    content = {
        "model": {k: v.half() for k, v in weights.items()},
        "epoch": 99,
        "args": args,
        "optimizer": {"a": 1},
    }
    torch.save(content, tmp_path / "model.pth")
    return tmp_path / "model.pth"


def test_checkpoint_there_and_back(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (ours,) = run(published, capsys, model="deit_tiny_patch16_224", model_kwargs=KWARGS)
    assert ours == published.with_suffix(".safetensors")
    checkpoint = read_checkpoint(str(ours), "")
    original = load_reference(published)
    assert same(checkpoint.state_dict, original["model"])
    assert checkpoint.config is not None
    assert (checkpoint.config.num_classes, checkpoint.config.img_size) == (5, (32, 32))
    assert checkpoint.config.svd_type == "mix_head_fc_qk"
    assert checkpoint.info["made_from"] == sha256_of(published)
    (back,) = run(ours, capsys, to="reference", output=str(published.parent / "back.pth"))
    content = load_reference(back)
    assert same(content["model"], original["model"])
    assert list(content["model"]) == list(build_model(checkpoint.config).state_dict())
    assert content["epoch"] == 99
    args = content["args"]
    assert isinstance(args, argparse.Namespace)
    assert (args.lr, args.svd_type, args.nb_classes, args.input_size) == (1e-4, "mix_head_fc_qk", 5, 32)
    # What we wrote names its model, so it needs no words on the way back in.
    (again,) = run(back, capsys)
    repeated = read_checkpoint(str(again), "")
    assert same(repeated.state_dict, checkpoint.state_dict)
    assert repeated.config == checkpoint.config


def assert_sparse(checkpoint: Checkpoint, pruned: np.ndarray) -> None:
    keep = torch.stack([checkpoint.state_dict[f"blocks.{i}.attn.keep"] for i in range(2)])
    assert keep.dtype == torch.bool
    assert np.array_equal(keep.numpy(), ~pruned)


@pytest.mark.parametrize("way", ["beside", "somewhere else by the same name", "by option"])
def test_sparse_checkpoint_there_and_back(
    tmp_path: Path, tiny_config: ModelConfig, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    weights, pruned = random_weights(tiny_config), random_mask()
    name = {"beside": "mask.npy", "by option": ""}.get(way, "/their/masks/mask.npy")
    args = argparse.Namespace(model="deit_tiny_patch16_224", svd_type=None, mask_path=name)
    torch.save({"model": weights, "args": args}, tmp_path / "model.pth")
    np.save(tmp_path / "mask.npy", pruned)
    option = {"mask": str(tmp_path / "mask.npy")} if way == "by option" else {}
    (ours,) = run(tmp_path / "model.pth", capsys, model_kwargs=KWARGS, **option)
    assert_sparse(read_checkpoint(str(ours), ""), pruned)
    back, mask = run(ours, capsys, to="reference", output=str(tmp_path / "new" / "back.pth"))
    assert mask == tmp_path / "new" / "back_mask.npy"
    assert np.array_equal(np.load(mask), pruned)
    content = load_reference(back)
    assert same(content["model"], weights)
    assert content["args"].mask_path == "back_mask.npy"
    assert content["args"].svd_type is None
    (again,) = run(back, capsys)
    assert_sparse(read_checkpoint(str(again), ""), pruned)


def test_a_mask_that_is_not_there_is_missed(
    tmp_path: Path, tiny_config: ModelConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    args = argparse.Namespace(model="deit_tiny_patch16_224", mask_path="gone.npy")
    torch.save({"model": random_weights(tiny_config), "args": args}, tmp_path / "model.pth")
    convert(ConvertOptions.from_flat({"source": str(tmp_path / "model.pth"), "model_kwargs": KWARGS}))
    assert "gone.npy" in (said := capsys.readouterr().err)
    assert "--mask" in said


@pytest.mark.parametrize("kind", ["mask", "map"])
def test_arrays_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    source = tmp_path / "array.npy"
    array = random_mask() if kind == "mask" else np.full((2, 3, 5, 5), 0.2, dtype=np.float32)
    np.save(source, array)
    (ours,) = run(source, capsys)
    assert ours == tmp_path / "array.safetensors"
    if kind == "mask":
        assert np.array_equal(load_file(ours)["keep"], ~array)
        assert read_mask(ours).info["made_from"] == sha256_of(source)
    else:
        assert np.array_equal(read_attention_map(ours).attention, array)
        assert read_attention_map(ours).info["made_from"] == sha256_of(source)
    (back,) = run(ours, capsys, to="reference", output=str(tmp_path / "back.npy"))
    assert back.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("kind", ["mask", "map"])
def test_an_npz_file_of_arrays(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    source = tmp_path / "array.npy"
    array = random_mask() if kind == "mask" else np.full((2, 3, 5, 5), 0.2, dtype=np.float32)
    np.save(source, array)
    (ours,) = run(source, capsys)
    for of in (source, ours):
        (path,) = run(of, capsys, output=str(tmp_path / f"{of.suffix[1:]}.npz"))
        with np.load(path, allow_pickle=False) as found:
            if kind == "map":
                np.testing.assert_array_equal(found["attention"], array)
            else:
                np.testing.assert_array_equal(found["keep"], ~array)
                np.testing.assert_allclose(found["head_sparsity"], array.mean(axis=(-2, -1)))
                assert found["global_tokens"].shape == array.shape[:2]
            assert json.loads(str(found["vitcod"]))["made_from"] == sha256_of(of)


def test_names_that_say_what_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "mask.npy"
    np.save(source, random_mask())
    for name in ("mask.pth", "mask.npy2", "mask.safetensors.txt"):
        message = refusal(source, capsys, output=str(tmp_path / name))
        assert message == (
            f"--output {tmp_path / name}: what is written is a .safetensors or .npz file; let the name end so, or "
            "in / for a folder."
        )
    (tmp_path / "there").mkdir()
    (tmp_path / "folder.npz").mkdir()
    for output in (tmp_path / "there", f"{tmp_path}/new/", f"{tmp_path}/new.pth/", tmp_path / "folder.npz"):
        (ours,) = run(source, capsys, output=str(output))
        assert ours == Path(output, "mask.safetensors")
        assert np.array_equal(read_mask(ours).keep, ~random_mask())
    for name in ("mask2.safetensors", "mask.npz", "mask.pth"):  # an .npz has our polarity
        assert "is a .npy file;" in refusal(ours, capsys, to="reference", output=str(tmp_path / name))
    assert "--output NAME.npz" in refusal(ours, capsys)
    (upper,) = run(source, capsys, output=str(tmp_path / "UPPER.NPZ"))
    assert upper.read_bytes().startswith(b"PK")


def test_names_of_checkpoints(
    tmp_path: Path, tiny_config: ModelConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "model.safetensors"
    write_checkpoint(source, random_weights(tiny_config), tiny_config, {})
    for name in ("back.pth", "back.pt"):
        (back,) = run(source, capsys, to="reference", output=str(tmp_path / name))
        assert same(load_reference(back)["model"], random_weights(tiny_config))
    (inside,) = run(source, capsys, to="reference", output=f"{tmp_path}/new/")
    assert inside == tmp_path / "new" / "model.pth"
    monkeypatch.setattr("vitcod_cli.export.convert.read_checkpoint", None)  # refused before it is read
    assert "is a .pth or .pt file;" in refusal(source, capsys, to="reference", output=str(tmp_path / "x.npz"))
    for name in ("x.npy", "x.bin"):
        message = refusal(back, capsys, output=str(tmp_path / name))
        assert message.startswith(f"--output {tmp_path / name}: what is written is a .safetensors or .npz file;")


@pytest.mark.parametrize("sparse", [True, False])
def test_an_npz_file_of_a_checkpoint(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], sparse: bool
) -> None:
    np.save(tmp_path / "mask.npy", random_mask())
    mask = {"mask": str(tmp_path / "mask.npy")} if sparse else {}
    (ours,) = run(published, capsys, model="deit_tiny_patch16_224", model_kwargs=KWARGS, **mask)
    (direct,) = run(
        published, capsys, output=f"{tmp_path}/a.npz", model="deit_tiny_patch16_224", model_kwargs=KWARGS, **mask
    )
    (again,) = run(ours, capsys, output=f"{tmp_path}/b.npz")
    weights = load_reference(published)["model"]
    for path, source in ((direct, published), (again, ours)):
        with np.load(path, allow_pickle=False) as found:
            info = json.loads(str(found["vitcod"]))
            assert found["vitcod"].shape == ()
            names = set(found.files) - {"vitcod", "keep", "head_sparsity", "global_tokens"}
            assert names == set(weights)
            for name, tensor in weights.items():
                assert found[name].dtype == np.float16
                assert found[name].tobytes() == tensor.numpy().tobytes(), name
            assert ("keep" in found) == sparse
            if sparse:
                assert found["keep"].dtype == np.bool_
                np.testing.assert_array_equal(found["keep"], ~random_mask())
                np.testing.assert_allclose(found["head_sparsity"], random_mask().mean(axis=(-2, -1)))
        assert info["made_from"] == sha256_of(source)
        assert info["model_config"]["svd_type"] == "mix_head_fc_qk"
        assert (info["epoch"], info["args"]["lr"]) == (99, 1e-4)


def test_an_npz_file_of_numbers_that_numpy_lacks(
    tmp_path: Path, tiny_config: ModelConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = {name: value.bfloat16() for name, value in random_weights(tiny_config).items()}
    write_checkpoint(tmp_path / "half.safetensors", weights, tiny_config, {})
    source = ConvertOptions.from_flat({"source": f"{tmp_path}/half.safetensors", "output": f"{tmp_path}/half.npz"})
    convert(source)
    assert f"numpy has no torch.bfloat16: {len(weights)} tensors go in as float32" in capsys.readouterr().err
    with np.load(tmp_path / "half.npz", allow_pickle=False) as found:
        for name, value in weights.items():
            assert found[name].dtype == np.float32
            np.testing.assert_array_equal(found[name], value.float().numpy())


def test_an_npz_file_of_a_polarized_mask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = polarized(Mask(~random_mask(), {"num_prefix_tokens": 1, "protect_prefix": False}), OrderSettings())
    write_mask(tmp_path / "mask.safetensors", mask)
    (path,) = run(tmp_path / "mask.safetensors", capsys, output=f"{tmp_path}/mask.npz")
    with np.load(path, allow_pickle=False) as found:
        np.testing.assert_array_equal(found["keep"], mask.keep)
        np.testing.assert_array_equal(found["permutation"], mask.order.permutation)
        np.testing.assert_array_equal(found["global_tokens"], mask.order.global_tokens)
        assert json.loads(str(found["vitcod"]))["threshold"] == mask.info["threshold"]


def test_an_npz_file_is_written_whole_and_without_pickles(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(b"before")
    with pytest.raises(TypeError, match=r"^names holds Python objects$"):
        write_npz(path, {"ones": np.ones(3), "names": np.array([object()])})
    with pytest.raises(TypeError, match="JSON"):
        write_npz(path, {"ones": np.ones(3)}, {"bad": object()})
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
    write_npz(path, {"ones": np.ones(3)})
    with np.load(path, allow_pickle=False) as found:
        assert found.files == ["ones"]


@pytest.mark.parametrize("kind", ["mask", "map", "foreign"])
def test_an_npz_file_is_refused_where_a_mask_or_map_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """What to do instead is true: our arrays have the other polarity than an .npy, and are several."""
    path = tmp_path / "arrays.npz"
    array = random_mask() if kind == "mask" else np.full((2, 3, 5, 5), 0.2, dtype=np.float32)
    if kind == "foreign":
        np.savez(path, array=array)
        what = "an .npz archive; save its one array with numpy.save instead"
    else:
        np.save(tmp_path / "array.npy", array)
        run(tmp_path / "array.npy", capsys, output=str(path))
        what = "an .npz archive that vitcod made for other programs; give the file that it was made from"
    with pytest.raises(VitcodError) as error:
        make_mask(MaskOptions.from_flat({"attn_map": str(path), "output": f"{tmp_path}/new.safetensors"}))
    assert str(error.value) == f"--attn-map {path} is not a safetensors file: it seems to be {what}."
    with pytest.raises(VitcodError) as error:
        read_mask(path)
    assert str(error.value) == f"--mask {path} is not a safetensors file: it seems to be {what}."
    assert refusal(path, capsys) == f"{path} can't be converted: it seems to be {what}."
    assert not (tmp_path / "new.safetensors").exists()


def test_the_authors_files_there_and_back(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("vitcod_deit_tiny_info_0.95.npy", "deit_tiny_dense_attention.npy"):
        source = shared / "golden" / name
        (ours,) = run(source, capsys, output=str(tmp_path / "ours.safetensors"), overwrite=True)
        (back,) = run(ours, capsys, to="reference", output=str(tmp_path / name))
        assert back.read_bytes() == source.read_bytes()


def test_plain_weights_go_both_ways(
    tmp_path: Path, tiny_config: ModelConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = random_weights(tiny_config)
    torch.save(weights, tmp_path / "plain.bin")
    model = {"model": "deit_tiny_patch16_224", "model_kwargs": KWARGS, "img_size": 32}
    (ours,) = run(tmp_path / "plain.bin", capsys, **model)
    assert same(read_checkpoint(str(ours), "").state_dict, weights)
    (reference,) = run(tmp_path / "plain.bin", capsys, to="reference", **model)
    assert same(load_reference(reference)["model"], weights)


def refusal(source: Path, capsys: pytest.CaptureFixture[str], **values: object) -> str:
    before = {path: path.read_bytes() for path in source.parent.iterdir() if path.is_file()}
    with pytest.raises(VitcodError) as error:
        run(source, capsys, **values)
    assert {path: path.read_bytes() for path in source.parent.iterdir() if path.is_file()} == before
    assert str(error.value).endswith(".")
    return str(error.value)


def test_nothing_is_overwritten_unasked(
    tmp_path: Path, tiny_config: ModelConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "mask.npy"
    np.save(source, random_mask())
    (tmp_path / "mask.safetensors").write_text("mine")
    message = refusal(source, capsys)
    assert "--overwrite" in message
    assert "--output" in message
    assert "is read by this command" in refusal(source, capsys, output=str(source), overwrite=True)
    (ours,) = run(source, capsys, overwrite=True)
    assert np.array_equal(read_mask(ours).keep, ~random_mask())
    # A sparse checkpoint writes two files, and neither may be lost.
    sparse = tmp_path / "sparse.safetensors"
    keep = {f"blocks.{i}.attn.keep": torch.from_numpy(~random_mask()[i]) for i in range(2)}
    write_checkpoint(sparse, {**random_weights(tiny_config), **keep}, tiny_config, {})
    (tmp_path / "sparse_mask.npy").write_text("mine")
    assert "sparse_mask.npy exists" in refusal(sparse, capsys, to="reference")


def test_what_cannot_be_converted(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = published.parent
    np.save(folder / "mask.npy", random_mask())
    (ours,) = run(folder / "mask.npy", capsys)
    assert "--to reference" in refusal(ours, capsys)
    assert "--to vitcod" in refusal(folder / "mask.npy", capsys, to="reference", output="x.npy")
    assert "--to vitcod" in refusal(published, capsys, to="reference", output="x.pth")
    assert "--mask goes with a checkpoint" in refusal(ours, capsys, to="reference", mask=str(ours))
    np.save(folder / "array.npy", np.arange(3))
    assert "array of int64 [3]" in refusal(folder / "array.npy", capsys)
    np.save(folder / "numbers.npy", random_mask().astype(np.float32))
    assert "seems to be a mask saved as numbers" in refusal(folder / "numbers.npy", capsys)
    np.save(folder / "other.npy", np.full((1, 1, 3, 3), 0.5, dtype=np.float32))
    assert "has a row that sums to 1.5" in refusal(folder / "other.npy", capsys)
    np.save(folder / "double.npy", np.full((1, 1, 3, 3), 1 / 3))
    assert "float32 can't" in refusal(folder / "double.npy", capsys)
    assert "does not exist" in refusal(folder / "nothing", capsys)
    (folder / "text.txt").write_text("words")
    assert "not a whole PyTorch checkpoint" in refusal(folder / "text.txt", capsys)
    assert "calls its model 'custom'" in refusal(published, capsys)
    model = {"model": "deit_tiny_patch16_224", "model_kwargs": KWARGS}
    assert "Converting changes no tensor" in refusal(published, capsys, img_size=48, **model)
    assert "[2, 3, 16, 16]" in refusal(
        published, capsys, mask=str(_small_mask(folder)), output=str(folder / "new.safetensors"), **model
    )


def _small_mask(folder: Path) -> Path:
    np.save(folder / "small.npy", random_mask()[:, :, :16, :16])
    return folder / "small.npy"


def test_eval_refuses_a_mask_in_an_npz(
    cli: InProcess, tmp_path: Path, tiny_config: ModelConfig, image_folder: Path
) -> None:
    np.save(tmp_path / "mask.npy", random_mask())
    assert cli("convert", "mask.npy", "--output", "mask.npz").out == "mask.npz\n"
    write_checkpoint(tmp_path / "model.safetensors", random_weights(tiny_config), tiny_config, {})
    words = ("eval", "--checkpoint", "model.safetensors", "--data-path", image_folder, "--mask")
    assert cli(*words, "mask.npz").error.startswith(
        "--mask mask.npz is not a safetensors file: it seems to be an .npz"
    )


def test_as_a_command(run_cli: Cli, tmp_path: Path) -> None:
    np.save(tmp_path / "mask.npy", random_mask())
    done = run_cli("convert", "mask.npy", "--output", "ours")
    assert (done.returncode, done.stdout) == (0, "ours\n")
    done = run_cli("convert", "ours", "--to", "reference", "--output", "back.npy")
    assert (done.returncode, done.stdout) == (0, "back.npy\n")
    assert (tmp_path / "back.npy").read_bytes() == (tmp_path / "mask.npy").read_bytes()
    done = run_cli("convert", "mask.npy", "--output", "ours")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "--overwrite" in done.stderr


def test_a_mask_that_a_stranger_names_is_looked_for_beside_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "mask.npy").touch()
    monkeypatch.chdir(tmp_path / "files")
    for named in (str(tmp_path / "mask.npy"), "../mask.npy"):
        assert mask_beside("model.pth", named) is None
    (tmp_path / "files" / "mask.npy").touch()
    for named in (str(tmp_path / "mask.npy"), "../mask.npy", "mask.npy"):
        assert mask_beside("model.pth", named) == Path("mask.npy")
