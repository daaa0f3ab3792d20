"""Control tokens added to the files of every kind of tokenizer: old ids stay, and the reference reads the new ones."""

import json
import shutil
from pathlib import Path

import pytest

from minitune.errors import TokenizerError
from minitune.jobs.load import TINY
from minitune.tokenizer import load_tokenizer
from minitune.tokenizer.extend import extended

NAMES = ["<|im_start|>", "<|to be added|>"]
TEXT = "Tom has a red kite. 小明有一只红色的风筝。  <|im_start|> def f(x):\n\treturn x"
KINDS = {
    "sentencepiece, alone": "tiny",
    "sentencepiece with a configuration": "tokenizers/llama2",
    "sentencepiece, a file": "tokenizers/llama2/tokenizer.model",
    "byte-level": "tokenizers/gpt2",
    "byte-level, a file": "tokenizers/gpt-neox/20B_tokenizer.json",
    "ranks": "tokenizers/llama3/tokenizer.model",
    "json of sentencepiece": "weights/TinyStories-656K",
}


def copied(kind: str, material: Path, folder: Path) -> Path:
    """The files of a tokenizer, where they can be changed."""
    source = TINY if KINDS[kind] == "tiny" else material / KINDS[kind]
    if source.is_file():
        folder.mkdir()
        name = "tokenizer.json" if source.suffix == ".json" else source.name
        return Path(shutil.copyfile(source, folder / name)).parent
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.npz"))
    if (folder / "hf").is_dir():
        shutil.copyfile(folder / "hf" / "tokenizer_config.json", folder / "tokenizer_config.json")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_names_become_control_tokens_behind_the_old_ids(kind: str, material: Path, tmp_path: Path) -> None:
    """Ids of any text, of the start and of the end are what they were; a typed name stays text (B11)."""
    before = load_tokenizer(copied(kind, material, tmp_path / "before"))
    names = [name for name in NAMES if before.token_id(name) is None]
    made = extended(before, names, tmp_path / "after")
    size = before.vocab_size
    assert made.vocab_size == size + len(names)
    assert [made.token_id(name) for name in names] == list(range(size, size + len(names)))
    assert made.encode(TEXT) == before.encode(TEXT)
    assert made.decode(made.encode(TEXT)) == before.decode(before.encode(TEXT))
    assert (made.bos_id, made.eos_id, made.unk_id) == (before.bos_id, before.eos_id, before.unk_id)
    assert made.control_ids == before.control_ids | set(range(size, size + len(names)))
    assert size in made.encode(f"a{names[0]}b", control=True)
    assert made.fingerprint != before.fingerprint
    # The folder is one that loads by itself, with every file that the other had.
    assert load_tokenizer(tmp_path / "after").fingerprint == made.fingerprint
    assert {file.name for file in before.files} <= {file.name for file in made.files}
    if "tokenizer.model" in {file.name for file in before.files}:
        assert (tmp_path / "after/tokenizer.model").read_bytes() == (tmp_path / "before/tokenizer.model").read_bytes()


@pytest.mark.parametrize("kind", ["byte-level", "byte-level, a file", "json of sentencepiece"])
def test_the_reference_reads_them(kind: str, material: Path, tmp_path: Path) -> None:
    """``len(tokenizer)`` there, to which a user makes the embedding longer, is our number of ids."""
    from transformers import PreTrainedTokenizerFast

    before = load_tokenizer(copied(kind, material, tmp_path / "before"))
    names = [name for name in NAMES if before.token_id(name) is None]
    made = extended(before, names, tmp_path / "after")
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "after" / "tokenizer.json"))
    assert len(theirs) == made.vocab_size
    for id, name in enumerate(names, before.vocab_size):
        assert theirs.encode(name, add_special_tokens=False) == [id]
        assert theirs.decode([id], skip_special_tokens=True) == ""


def test_a_list_of_added_tokens_without_their_ids_in_the_configuration(material: Path, tmp_path: Path) -> None:
    """An older folder names its added tokens in a file of its own, which the reference does not read beside ours."""
    folder = copied("byte-level", material, tmp_path / "before")
    (folder / "tokenizer.json").unlink()
    (folder / "added_tokens.json").write_text(json.dumps({"<|old|>": 50257}))
    made = extended(load_tokenizer(folder), NAMES, tmp_path / "after")
    assert made.token_id("<|old|>") == 50257
    listed = json.loads((tmp_path / "after" / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert {id: entry["content"] for id, entry in listed.items()} == {
        "50257": "<|old|>", "50258": NAMES[0], "50259": NAMES[1],
    }  # fmt: skip


def test_a_name_that_is_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="the token '</s>' is there already"):
        extended(load_tokenizer(TINY), ["<new>", "</s>"], tmp_path / "after")
    assert not (tmp_path / "after").exists()
