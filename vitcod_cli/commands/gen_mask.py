"""``vitcod gen-mask``: step 3, a fixed sparse mask from a mean attention map. Needs numpy only."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitcod_cli.commands.common import JsonOption
from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.settings import MaskSettings
from vitcod_cli.settings import Settings, setting

if TYPE_CHECKING:
    from vitcod_cli.artifacts.mask import Mask


@dataclass(frozen=True, kw_only=True)
class MaskOutput(Settings):
    """Where the mask goes."""

    output: str | None = setting(
        None,
        "File to write; left out, named after the method and the sparsity reached, such as info_0.90.safetensors.",
        panel="Output",
        metavar="FILE",
        show_default=False,
    )
    output_dir: str = setting(".", "Folder of a file named so.", panel="Output", metavar="FOLDER")
    overwrite: bool = setting(False, "Replace the file when it is there already.", panel="Output")

    def target(self, name: str) -> Path:
        """The file to write.

        Raises:
            VitcodError: if it is there already, without ``--overwrite``.
        """
        path = Path(self.output_dir, name) if self.output is None else Path(self.output)
        if path.exists() and not self.overwrite:
            raise VitcodError(f"{path} exists; replace it with --overwrite, or name another file with --output.")
        return path


def gen_mask(
    *,
    attn_map: Annotated[
        str | None,
        typer.Option(
            "--attn-map",
            metavar="FILE",
            help="Mean attention map: from dump-attn, or a published .npy.",
            rich_help_panel="Mask",
        ),
    ] = None,
    mask: MaskSettings,
    output: MaskOutput,
    json: JsonOption = False,
) -> None:
    """Step 3: make a fixed sparse attention mask from a mean attention map.

    Prints the sparsity of every block, then the path of the mask on stdout.
    """
    if attn_map is None:
        raise VitcodError("--attn-map is needed: name the attention map that vitcod dump-attn wrote.")
    if output.output is not None:
        output.target("")
    from vitcod_cli.artifacts.files import checked_path, sha256_of

    checked_path(attn_map, "--attn-map")
    with ThreadPoolExecutor(1) as beside:  # the checksum takes as long as importing numpy
        checksum = beside.submit(sha256_of, attn_map)
        from vitcod_cli.artifacts.attention_map import read_attention_map
        from vitcod_cli.artifacts.mask import Mask, write_mask
        from vitcod_cli.cli.console import console, print_json, print_result
        from vitcod_cli.masks.generate import generate_mask

        reporter = console()
        made = generate_mask(read_attention_map(attn_map), mask, reporter)
    path = output.target(f"{mask.name}_{made.info['sparsity']:.2f}.safetensors")
    origin = {"made_by": "vitcod gen-mask", "made_from": checksum.result(), "source": Path(attn_map).name}
    write_mask(path, Mask(made.keep, {**made.info, **origin}))
    for line in _table(made):
        reporter.info(line)
    if json:
        print_json(_figures(path, made))
    else:
        print_result(str(path))


def _figures(path: Path, made: Mask) -> dict[str, Any]:
    from vitcod_cli.masks.statistics import block_sparsity, global_tokens

    return {
        "path": str(path),
        **{key: value for key, value in made.info.items() if key != "model_config"},
        "per_block": block_sparsity(made.keep).tolist(),
        "global_tokens": global_tokens(made.keep).tolist(),
    }


def _table(made: Mask) -> list[str]:
    """The sparsity of every block in aligned lines. Plain text: Rich would take as long as all the rest."""
    from vitcod_cli.masks.statistics import block_sparsity, global_tokens, head_sparsity

    lines = ["block  pruned  least and most pruned head  global tokens of a head"]
    rows = zip(block_sparsity(made.keep), head_sparsity(made.keep), global_tokens(made.keep), strict=True)
    for block, (pruned, heads, tokens) in enumerate(rows):
        heads_span = f"{heads.min():.1%} to {heads.max():.1%}"
        lines.append(f"{block:5}  {pruned:6.1%}  {heads_span:>26}  {f'{tokens.min()} to {tokens.max()}':>23}")
    parameters = [f"{name.replace('_', ' ')} {made.info[name]:.10g}" for name in _PARAMETERS if name in made.info]
    made_by = ", ".join([made.info["method"], *parameters])
    lines.append(f"  all  {made.info['sparsity']:6.2%}  by {made_by}")
    return lines


_PARAMETERS = ("info_cut", "ratio", "std_coef", "seed")
