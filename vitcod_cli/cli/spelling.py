"""Other spellings of our options: those of the published code, of DeiT and of timm."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

PUBLISHED = {
    "--attn": ("--attn-map",),
    "--data-set": ("--dataset",),
    "--distillation-alpha": ("--distill-alpha",),
    "--distillation-tau": ("--distill-tau",),
    "--distillation-type": ("--distill",),
    "--finetune": ("--init-from", "--checkpoint"),
    "--input-size": ("--img-size",),
    "--mask-path": ("--mask",),
    "--num-workers": ("--workers",),
    "--teacher-model": ("--teacher",),
}
"""Names of the published code and of DeiT for what we call otherwise; the first that a command has is meant."""


def canonical(
    words: Sequence[str], flags: Collection[str], values: Mapping[str, int], repeatable: Collection[str]
) -> list[str]:
    """The command line in our own spelling; values are left as they are.

    ``--info_cut 0.9`` becomes ``--info-cut 0.9``; the several values that one option may be
    given (``--model-kwargs a=1 b=2``) become one option each.

    Args:
        words: the words after the command's name.
        flags: every option of the command.
        values: how many values an option takes, for those that take any.
        repeatable: the options among these that may be given several times.
    """
    result: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*result, word, *rest]
        if not word.startswith("--"):
            result.append(word)
            continue
        name, equals, value = word.partition("=")
        flag = _own_name(name, flags)
        result.append(flag + equals + value)
        if flag == "--resume" and rest[:1] == ["auto"]:
            rest.pop(0)  # --resume is auto already
        for _ in range(min(values.get(flag, 0) - len(equals), len(rest))):
            result.append(rest.pop(0))
        if flag in repeatable:
            while rest and not _looks_like_option(rest[0]):
                result += [flag, rest.pop(0)]
    return result


def _own_name(name: str, flags: Collection[str]) -> str:
    dashed = name.replace("_", "-")
    if dashed in flags:
        return dashed
    return next((own for own in PUBLISHED.get(dashed, ()) if own in flags), name)


def _looks_like_option(word: str) -> bool:
    return re.match(r"-[^\d.]", word) is not None
