"""The one door to where a data set lies. Not covered yet: object stores (only local folders)."""

from pathlib import Path

from storage.errors import InputError


def local_folder(url: str | Path) -> Path:
    """Turn a URL or path into a local folder.

    Args:
        url: A path, or a URL with the scheme `file://`.

    Raises:
        InputError: The scheme names something other than the local disk.
    """
    text = str(url)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Path(text)
    if scheme != "file":
        raise InputError(
            f"{text}: the scheme {scheme}:// is not supported, only folders on a local or "
            "mounted disk are; give a path"
        )
    return Path(rest)
