"""The errors a user can cause. Anything else that goes wrong is a bug of ours and keeps its traceback.

A message is one line and says where, what was got, what was expected and what to do:
``row 17 of data.jsonl: 'output' is missing (the row has: instruction, input); every row needs an answer``.
The command line prints it after ``minitune: `` and exits with code 2.
"""

import difflib
from collections.abc import Iterable


class MinituneError(ValueError):
    """Base of every error that the user can mend."""


class ConfigError(MinituneError):
    """A setting, a flag or a configuration file is wrong."""


class CheckpointError(MinituneError):
    """A model folder is missing, damaged, unsafe or of a kind that is not supported."""


class TokenizerError(MinituneError):
    """A tokenizer file is missing, malformed or has a component that is not supported."""


class DataError(MinituneError):
    """An instruction file is missing or has rows that cannot be trained on."""


class TrainingError(MinituneError):
    """A run cannot start or cannot go on: nothing to train, a loss that is not finite."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return ``'; did you mean X?'`` for the choice most like ``word``, or nothing where none is alike."""
    found = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f"; did you mean {found[0]!r}?" if found else ""
