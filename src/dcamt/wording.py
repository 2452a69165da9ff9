"""Numbers in words, alike in every message, table and picture."""


def percent(fraction: float, digits: int = 2) -> str:
    """``12.50 %``; what rounds to nothing has no sign."""
    return f"{100 * fraction:z.{digits}f} %"


def number_of(count: int, what: str) -> str:
    """``1 case``, ``2 cases``."""
    return f"{count} {what}{'' if count == 1 else 's'}"
