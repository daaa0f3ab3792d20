"""``minitune study trace``: every number in the page is what another implementation computes from the same text."""

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

import minitune
from minitune.chat import Encoded
from minitune.cli import main
from minitune.config import ModelConfig
from minitune.jobs.load import TINY, load
from minitune.models import build
from minitune.study.page import document, page
from minitune.study.trace import TraceConfig, encode, follow

QUESTION, ANSWER = "What is the opposite of hot?", "The opposite of hot is cold."
STORY = "小明有一个红色的球。 Once upon a time\nthere was a cat."
DIGITS = 1e-4
"""The page has five digits of a number."""


class Page(HTMLParser):
    """What a browser would make of the page: its elements, and the text of the one with the numbers."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data, self._inside = "", False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = dict(attrs).get("id") == "trace-data"

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.data += data


class Truth(NamedTuple):
    """What transformers computes for the same ids: one layer more of states than of attentions, without the norm."""

    states: list[Tensor]  # (T, C)
    attentions: list[Tensor]  # (H, T, T)
    lens: list[Tensor]  # (T, V)
    nll: Tensor  # (T - 1,)
    loss: float
    gradients: dict[str, float]


def traced(tmp_path: Path, *words: str) -> dict[str, Any]:
    """The numbers in the page that the command writes."""
    out = tmp_path / "trace.html"
    assert main(["study", "trace", "tiny", *words, "--out", str(out), "--device", "cpu"]) == 0
    return json.loads(Page(out.read_text(encoding="utf-8")).data)


def truth(ids: list[int], trained: list[bool]) -> Truth:
    model: Any = transformers.LlamaForCausalLM.from_pretrained(TINY, dtype=torch.float32, attn_implementation="eager")
    row = torch.tensor([ids])
    states: list[Tensor] = [model.model.embed_tokens(row)[0].detach()]
    for layer in model.model.layers:
        layer.register_forward_hook(lambda m, given, y: states.append((y[0] if y.ndim == 3 else y).detach()))
    found = model(row, output_attentions=True)
    nll = F.cross_entropy(found.logits[0, :-1], row[0, 1:], reduction="none")
    mask = torch.tensor(trained[1:])
    loss = nll[mask].mean()
    loss.backward()
    return Truth(
        states=states,
        attentions=[a[0].detach() for a in found.attentions],
        lens=[torch.softmax(model.lm_head(model.model.norm(x)), -1).detach() for x in states],
        nll=nll.detach(),
        loss=float(loss.detach()),
        gradients={name: float(w.grad.norm()) for name, w in model.named_parameters() if w.grad is not None},
    )


def near(a: Any, b: Tensor) -> bool:
    return torch.allclose(torch.as_tensor(a), b, rtol=DIGITS, atol=DIGITS)


@pytest.mark.parametrize("words", [[STORY], [QUESTION, "--chat", "--answer", ANSWER]], ids=["text", "chat"])
def test_every_number_is_what_transformers_computes(tmp_path: Path, words: list[str]) -> None:
    """Guards the hooks, the remembered attention, the lens, the loss and the gradient, layer by layer."""
    found = traced(tmp_path, *words)
    tokens = found["tokens"]
    T = len(tokens)
    true = truth([token["id"] for token in tokens], [token["trained"] for token in tokens])
    assert (found["shape"]["L"], found["shape"]["H"]) == (len(true.attentions), len(true.attentions[0]))

    assert near(found["stream"], torch.stack(true.states).norm(dim=-1))
    lower = torch.tril_indices(T, T)
    for layer, expected in zip(found["attention"], true.attentions, strict=True):
        assert near(torch.tensor(layer) / found["unit"], expected[:, lower[0], lower[1]])
    for ids, p, given, expected in zip(
        found["lens"]["ids"], found["lens"]["p"], found["next_p"], true.lens, strict=True
    ):
        assert near(p, expected.topk(5).values)
        assert near(p, expected.gather(1, torch.tensor(ids)))
        assert given[0] is None
        assert near(given[1:], expected[:-1].gather(1, torch.tensor([[t["id"]] for t in tokens[1:]])).squeeze(1))
    assert tokens[0]["loss"] is None
    assert near([token["loss"] for token in tokens[1:]], true.nll)
    assert found["mean_loss"] == pytest.approx(true.loss, rel=DIGITS)

    gradients = found["gradients"]
    assert gradients["outside"]["embed"] == pytest.approx(true.gradients["model.embed_tokens.weight"], rel=DIGITS)
    assert gradients["outside"]["norm"] == pytest.approx(true.gradients["model.norm.weight"], rel=DIGITS)
    names: dict[str, str] = {
        "attention": "self_attn",
        "attention_norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
    }
    for number, row in enumerate(gradients["layers"]):
        for kind, norm in zip(gradients["kinds"], row, strict=True):
            published = ".".join(names.get(part, part) for part in str(kind).split("."))
            assert norm == pytest.approx(true.gradients[f"model.layers.{number}.{published}.weight"], rel=DIGITS)
    assert len(gradients["kinds"]) * len(gradients["layers"]) + 2 == len(true.gradients)


def test_what_a_block_adds_is_what_the_stream_gains(tmp_path: Path) -> None:
    """Guards the two writes: of transformers' own attention and MLP, by their lengths."""
    found = traced(tmp_path, STORY)
    model: Any = transformers.LlamaForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    writes: dict[str, list[Tensor]] = {"attention_writes": [], "mlp_writes": []}
    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(lambda m, given, y: writes["attention_writes"].append(y[0][0]))
        layer.mlp.register_forward_hook(lambda m, given, y: writes["mlp_writes"].append(y[0]))
    with torch.no_grad():
        model(torch.tensor([[token["id"] for token in found["tokens"]]]))
    for name, tensors in writes.items():
        assert near(found[name], torch.stack(tensors).norm(dim=-1))


def test_the_mask_of_a_conversation_is_the_one_of_training(tmp_path: Path) -> None:
    """Guards what is coloured: the answer and its end are trained, and without --chat all but the first token."""
    tokens = traced(tmp_path, QUESTION, "--chat", "--answer", ANSWER)["tokens"]
    assert "".join(token["text"] for token in tokens if token["trained"]) == ANSWER + "</s>"
    assert QUESTION in "".join(token["text"] for token in tokens if not token["trained"])
    tokens = traced(tmp_path, STORY)["tokens"]
    assert [token["trained"] for token in tokens] == [False] + [True] * (len(tokens) - 1)
    assert "".join(token["text"] for token in tokens[1:]).strip() == STORY


def test_without_an_answer_the_model_gives_one(tmp_path: Path) -> None:
    """Guards the default: what is traced is what ``minitune generate --chat`` would print."""
    found = traced(tmp_path, QUESTION, "--chat")
    tokens = found["tokens"]
    model, tokenizer = load("tiny", device="cpu", dtype="float32")
    prompt = [token["id"] for token in tokens if not token["trained"]]
    given = "".join(map(str, minitune.generate(model, tokenizer, prompt, max_tokens=64, temperature=0.0))).strip()
    assert given
    assert "".join(token["text"] for token in tokens if token["trained"]) == given + "</s>"


@pytest.mark.parametrize("form", ["gpt", "gpt parallel", "llama windowed"])
def test_other_forms_of_decoder(form: str) -> None:
    """Guards the seams that the hooks hold on to: side-by-side blocks, fused q, k and v, windows, post norms."""
    shape = {"vocab_size": 1600, "hidden_size": 48, "intermediate_size": 64, "num_layers": 3, "num_heads": 4}
    kinds = {
        "gpt": {"form": "gpt", "family": "gpt2", "num_kv_heads": 4, "learned_positions": True, "qkv_bias": True},
        "gpt parallel": {"form": "gpt", "family": "gpt_neox", "num_kv_heads": 4, "parallel_residual": True},
        "llama windowed": {"num_kv_heads": 2, "windows": (5, 0, 3), "post_norm": True, "attention_softcap": 9.0},
    }
    model = build(ModelConfig(head_dim=12, **shape, **kinds[form]))
    model.initialize(seed=1, std=0.3)
    tokenizer = load("tiny", device="cpu")[1]
    ids = tokenizer.encode(STORY)
    found = follow(model, tokenizer, Encoded.of(ids, [False] + [True] * (len(ids) - 1)), "", top=3)
    T = len(ids)
    assert found.patterns.shape == (3, 4, T, T)
    assert torch.allclose(found.patterns.sum(-1), torch.ones(3, 4, T), atol=1e-5)
    assert not found.patterns.triu(1).any()
    if form == "llama windowed":
        assert not found.patterns[2].tril(-3).any()
        assert found.patterns[2].tril(-2).any()
    with torch.no_grad():
        p = torch.softmax(model.logits(model(torch.tensor([ids]))), -1)[0]
    assert torch.allclose(found.lens_p[-1], p.topk(3).values, atol=1e-5)
    assert found.attention_writes.shape == found.mlp_writes.shape == (3, T)
    assert float(found.mlp_writes.min()) > 0
    assert len(document(found)["gradients"]["layers"]) == 3
    assert all(block.get_submodule("attention").ops is model.ops for block in model.blocks)


def test_the_page_needs_nothing_else_and_runs_nothing_of_the_text() -> None:
    """Guards the one file: no address but what stands inside, and text that looks like markup stays text."""
    evil = "</script><img src=x onerror=alert(1)><!-- &amp; \"'"
    model, tokenizer = load("tiny", device="cpu", dtype="float32")
    encoded, template = encode(TraceConfig(model="tiny", text=evil), model, tokenizer)
    text = page(follow(model, tokenizer, encoded, template, top=2))
    found = Page(text)
    assert not {tag for tag, _ in found.tags} & {"img", "link", "iframe", "object", "embed", "form", "a", "base"}
    assert not [attrs for _, attrs in found.tags if {"src", "href", "onerror"} & attrs.keys()]
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text
    policies = [attrs["content"] for tag, attrs in found.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policies
    assert (policies[0] or "").startswith("default-src 'none'")
    assert "".join(token["text"] for token in json.loads(found.data)["tokens"][1:]).strip() == evil


def test_what_a_user_can_get_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Guards one line for each mistake, and that no other file is lost."""
    out = tmp_path / "page.html"

    def fails(*words: str) -> str:
        assert main(["study", *words]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    assert "did you mean 'trace'" in fails("trase")
    assert "TEXT is empty" in fails("trace", "tiny", "", "--out", str(out))
    assert "add --chat" in fails("trace", "tiny", "a", "--answer", "b", "--out", str(out))
    assert "--top is 0" in fails("trace", "tiny", "a", "--top", "0", "--out", str(out))
    assert "takes 2 to 512" in fails("trace", "tiny", "a cat " * 400, "--out", str(out))
    assert "there is no folder" in fails("trace", "tiny", "a", "--out", str(tmp_path / "no" / "page.html"))
    assert not out.exists()
    out.write_text("mine")
    assert "is no page of this command" in fails("trace", "tiny", "a", "--out", str(out))
    assert out.read_text() == "mine"


def test_json_and_a_page_that_is_written_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Guards --json: one document, the rest on the other stream; and the second run replaces the first one's page."""
    out = tmp_path / "page.html"
    for text in ("one cat", "two cats"):
        assert main(["study", "trace", "tiny", text, "--out", str(out), "--json", "--device", "cpu"]) == 0
        said, people = capsys.readouterr()
        facts = json.loads(said)
        assert facts["page"] == str(out)
        assert math.isfinite(facts["loss"])
        assert "loss" in people
    assert "two" in out.read_text(encoding="utf-8")
