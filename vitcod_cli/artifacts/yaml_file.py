"""A YAML file of option values as strings, the way a command line would have them; whatever is in the file.

Read so, ``epochs: 010``, ``train_split: 1.10`` and ``img_size: 1:30`` mean what they say: YAML 1.1 would make
them 8, 1.1 and 90. Nulls, true and false (also yes, no, on, off) stay what they are.
"""

from __future__ import annotations

from typing import Any

import yaml

from vitcod_cli.errors import VitcodError, shown

LARGEST = 256 * 1024
"""Bytes of the largest file that is read; a config of ours has four thousand."""

_NULL, _BOOL, _TEXT = "tag:yaml.org,2002:null", "tag:yaml.org,2002:bool", "tag:yaml.org,2002:str"
_LIST = "tag:yaml.org,2002:seq"


class _Loader(yaml.SafeLoader):
    """YAML of which only the structure, nulls, true and false have a meaning."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # as its base class declares it
        first: [(tag, pattern) for tag, pattern in resolvers if tag in (_NULL, _BOOL)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read_values(path: str, flag: str, skip: str, example: str = "epochs: 10") -> list[tuple[int, str, Any]]:
    """Line, key and value of each entry of the mapping in the file at ``path``; none if it is empty.

    Values are strings, booleans, None, and lists of these. The value of the key ``skip`` is None, whatever it is.
    ``example`` is a line that the file might have, for messages.

    Raises:
        VitcodError: if it can't be read, is too large, or holds anything else.
    """
    text = _text(path, flag, example)
    try:
        node = yaml.compose(text, _Loader)
        if node is None or (isinstance(node, yaml.ScalarNode) and not node.value):
            return []
        if not isinstance(node, yaml.MappingNode):
            what = "list" if isinstance(node, yaml.SequenceNode) else "single value"
            raise VitcodError(f"{flag} {path} must hold lines like '{example}', not a {what}.")
        where = f"{flag} {path}"
        entries = [(*_key(key, where, example), value) for key, value in node.value]
        return [(line, key, None if key == skip else _value(value, where)) for line, key, value in entries]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark is not None else ""
        raise VitcodError(f"{flag} {path} is not valid YAML{where}: {_first_line(error)}.") from error
    except RecursionError as error:
        raise VitcodError(f"{flag} {path} is nested too deeply to be a file of settings.") from error


def _text(path: str, flag: str, example: str) -> str:
    from vitcod_cli.artifacts.files import checked_path

    with open(checked_path(path, flag), "rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise VitcodError(
            f"{flag} {path} is larger than {LARGEST // 1024} KiB, which no file of settings is; name a YAML file "
            f"of lines like '{example}'."
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise VitcodError(f"{flag} {path} is not a UTF-8 text file; name or save it as one.") from error


def _key(node: yaml.Node, where: str, example: str) -> tuple[int, str]:
    if isinstance(node, yaml.ScalarNode) and node.value.strip():
        return _line(node), str(node.value)
    what = "an empty key" if isinstance(node, yaml.ScalarNode) else "a key that is no name"
    raise VitcodError(f"{where} has {what} (line {_line(node)}); write lines like '{example}'.")


def _value(node: yaml.Node, where: str) -> Any:
    """A scalar or a list of scalars; nothing deeper, so that no reference can make a small file large."""
    if isinstance(node, yaml.SequenceNode) and node.tag == _LIST:
        return [_scalar(item, where) for item in node.value]
    return _scalar(node, where)


def _scalar(node: yaml.Node, where: str) -> str | bool | None:
    if isinstance(node, yaml.ScalarNode):
        text = str(node.value)
        if node.tag == _NULL:
            return None
        if node.tag == _BOOL and text.lower() in yaml.SafeLoader.bool_values:
            return bool(yaml.SafeLoader.bool_values[text.lower()])
        if node.tag == _TEXT:
            return text
    raise VitcodError(f"{where} holds no plain value or list of values in line {_line(node)}; write it as one.")


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _first_line(error: Exception) -> str:
    """What is wrong, from one of YAML's errors."""
    text = getattr(error, "problem", None) or error
    return (str(text).splitlines() or [shown(text)])[0]
