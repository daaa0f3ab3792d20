"""A tiny sentencepiece model of each kind, trained here, so that the tests hold without any downloaded file."""

from pathlib import Path

import pytest
from tokenizer_cases import train_sentencepiece as train


@pytest.fixture(scope="session")
def sp_bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a BPE model: byte fallback, dummy prefix, identity normaliser."""
    return train(tmp_path_factory.mktemp("bpe"))


@pytest.fixture(scope="session")
def sp_unigram(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a unigram model of the usual kind: no bytes, NFKC, extra spaces removed."""
    return train(
        tmp_path_factory.mktemp("unigram"),
        model_type="unigram",
        byte_fallback=False,
        vocab_size=36,
        normalization_rule_name="nmt_nfkc",
        remove_extra_whitespaces=True,
    )


@pytest.fixture(scope="session")
def sp_no_prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a BPE model without the dummy prefix, as Gemma's is."""
    return train(tmp_path_factory.mktemp("no_prefix"), add_dummy_prefix=False)
