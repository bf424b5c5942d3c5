"""The lists of names by which some benchmarks tell their splits."""

from collections.abc import Sequence

from cssformer.prepare.archives import Member
from cssformer.utils.errors import UserError


def full_name(member: Member) -> str:
    """``/SOURCE/NAME``: the source's name belongs to it, since a source may be the very folder that is looked for."""
    return f"/{member.source.resolve().name}/{member.name}"


def read_splits(members: Sequence[Member], files: dict[str, str], advice: str) -> dict[str, str]:
    """Return name -> split by the lists among ``members``, one name a line.

    Args:
        members: all files of the sources.
        files: how the path of each split's list ends.
        advice: what to give, for the message about a missing list.

    Raises:
        UserError: a list is missing, is there twice, or is no text.
    """
    splits: dict[str, str] = {}
    for split, ending in files.items():
        found = [member for member in members if full_name(member).endswith(f"/{ending}")]
        if not found:
            raise UserError(f"The list {ending} is in none of the sources; {advice}.")
        if len(found) > 1:
            raise UserError(f"The list {ending} is there twice, {found[0]} and {found[1]}; give it once.")
        try:
            splits |= dict.fromkeys(found[0].read_bytes().decode().split(), split)
        except UnicodeDecodeError:
            raise UserError(f"The list {found[0]} is no text; get a whole copy.") from None
    return splits
