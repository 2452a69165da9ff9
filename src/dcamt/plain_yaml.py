"""YAML files of plain values, as strangers may send them."""

from pathlib import Path
from typing import Any

import yaml

from dcamt.errors import InputError
from dcamt.files import read_text

_LARGEST_NUMBER = 2**63


class _PlainLoader(yaml.SafeLoader):
    """YAML of plain values: no object, no reference to another place, no endless number.

    References can make a short file stand for more values than fit into memory.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.constructor.ConstructorError(
                None, None, "references (*name) are not plain values", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_number(self, node: Any) -> int:
        number = self.construct_yaml_int(node)
        if abs(number) >= _LARGEST_NUMBER:
            raise ValueError
        return number


_PlainLoader.add_constructor("tag:yaml.org,2002:int", _PlainLoader.construct_number)


def parse_yaml(text: str, source: str) -> Any:
    """The plain values of a YAML text; InputError names ``source`` and the line."""
    try:
        loader = _PlainLoader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, ArithmeticError, LookupError, RecursionError,
            AttributeError, TypeError) as error:  # fmt: skip
        # Not the parser's own words: they quote the file.
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}" if mark else "a value in it"
        raise InputError(f"{source}: is not plain YAML ({where}); correct it") from None


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML file of plain values; InputError if it is missing, broken or not a mapping."""
    values = parse_yaml(read_text(path), str(path))
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise InputError(f"{path}: must hold 'key: value' lines; correct the file")
    return values
