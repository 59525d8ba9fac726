"""Tables for terminals and documents."""

from collections.abc import Iterable, Sequence


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A Markdown table whose first columns, ``left`` of them, hold words, the others numbers."""
    rule = ['---'] * left + ['---:'] * (len(heads) - left)
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in (heads, rule, *rows))
