"""Text to token ids and back: sentencepiece files, ``tokenizer.json``, ``vocab.json`` with merges, and rank files.

``load_tokenizer`` reads a model folder or one tokenizer file; what it gives back is a ``Tokenizer``.
"""

from minitune.tokenizer.base import TextStream, Tokenizer
from minitune.tokenizer.load import load_tokenizer

__all__ = ["TextStream", "Tokenizer", "load_tokenizer"]
