"""Where a command writes a page: never over something that is not an earlier one."""

from pathlib import Path

from minitune.errors import ConfigError
from minitune.files import write_text


def page_path(name: str, flag: str, mark: str) -> Path:
    """The file that ``flag name`` means; ConfigError where its folder is missing or something else would be lost.

    ``mark`` is how a page of this command starts.
    """
    path = Path(name).expanduser()
    if not path.parent.is_dir():
        raise ConfigError(f"{flag} {path}: there is no folder {path.parent}")
    if path.exists() and (not path.is_file() or mark not in path.read_bytes()[:300].decode("utf-8", "replace")):
        raise ConfigError(f"{flag} {path} exists and is no page of this command; choose another name")
    return path


def write_page(path: Path, flag: str, text: str) -> None:
    """Write the page, whole or not at all; ConfigError where it cannot be."""
    try:
        write_text(path, text)
    except OSError as error:
        raise ConfigError(f"{flag} {path} cannot be written ({error.strerror})") from None
