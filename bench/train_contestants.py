"""One contestant of ``bench.train``: loads the model, then takes optimizer steps when it is told to."""

import argparse
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from bench.rows import Example, read_examples
from bench.workers import Channel, serve

LR, CLIP = 1e-5, 1.0
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def minitune(args: argparse.Namespace, rows: list[Example], channel: Channel) -> None:
    """The loop of ``minitune sft``: packed where rows are real, compiled blocks where they can be graphed."""
    from minitune.adapters import load_adapter
    from minitune.adapters.lora import adapted_layers
    from minitune.checkpoint import load_checkpoint
    from minitune.data.batch import Batch, pack_rows, pad_rows
    from minitune.data.pack import packed_epoch
    from minitune.device import pick_ops
    from minitune.optim import AdamW
    from minitune.train import train

    device, dtype = torch.device(args.device), DTYPES[args.dtype]
    ops, _ = pick_ops(args.ops, device)
    kept = torch.float32 if args.method == "full" else dtype
    model = load_checkpoint(args.folder, device=device, dtype=kept, compute_dtype=dtype, ops=ops).model
    if args.method == "lora":
        load_adapter(model, args.folder / "adapter")
        model.requires_grad_(False)
        for layer in adapted_layers(model).values():
            layer.lora_A.requires_grad_(True)
            layer.lora_B.requires_grad_(True)
    if args.compile:
        from minitune.jobs.compiled import compile_blocks

        compile_blocks(model)
    optimizer = AdamW({name: w for name, w in model.named_parameters() if w.requires_grad})

    def batches() -> Iterator[list[Batch]]:
        while True:
            if args.setting == "fixed":
                parts = [rows[i : i + args.micro] for i in range(0, len(rows), args.micro)]
                yield [pad_rows(part, device) for part in parts]
            else:
                packed = packed_epoch([row.inputs for row in rows], args.capacity, seed=0, epoch=0)
                documents = [[rows[i] for i in row] for row in packed]
                parts = [documents[i : i + args.micro] for i in range(0, len(documents), args.micro)]
                fill = device.type != "cpu" or bool(args.compile)  # as jobs/run.py has it
                yield [pack_rows(part, args.capacity, device, fill=fill) for part in parts]

    reports = train(model, optimizer, batches(), lr=lambda step: LR, clip=CLIP)

    def step() -> dict[str, Any]:
        report = next(reports)
        return {"loss": report.loss, "grad_norm": report.grad_norm}

    serve(channel, step)


def hugging_face_model(args: argparse.Namespace) -> torch.nn.Module:
    """The reference model, with its adapter where LoRA is trained; SDPA attention."""
    from transformers import AutoModelForCausalLM

    load: Callable[..., Any] = AutoModelForCausalLM.from_pretrained
    if args.contestant == "liger":
        from liger_kernel.transformers import AutoLigerKernelForCausalLM  # pyright: ignore[reportMissingImports]

        load = AutoLigerKernelForCausalLM.from_pretrained
    dtype = DTYPES[args.dtype]
    model = load(args.folder, dtype=dtype, attn_implementation="sdpa").to(args.device)
    if args.method == "lora":
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, args.folder / "adapter", is_trainable=True)
    return model


def transformers(args: argparse.Namespace, rows: list[Example], channel: Channel) -> None:
    """``transformers`` with ``peft`` in a plain loop: padded batches, torch's fused AdamW."""
    model: Any = hugging_face_model(args).train()
    weights = [w for w in model.parameters() if w.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LR, weight_decay=0.0, fused=True)
    trained = sum(sum(row.trained[1:]) for row in rows)

    def padded(part: list[Example]) -> dict[str, torch.Tensor]:
        longest = max(len(row.ids) for row in part)
        made = {
            "input_ids": [row.ids + [0] * (longest - len(row.ids)) for row in part],
            "labels": [row.labels + [-100] * (longest - len(row.ids)) for row in part],
            "attention_mask": [[1] * len(row.ids) + [0] * (longest - len(row.ids)) for row in part],
        }
        return {name: torch.tensor(values, device=args.device) for name, values in made.items()}

    def step() -> dict[str, Any]:
        loss = 0.0
        for i in range(0, len(rows), args.micro):
            # num_items_in_batch: the divisor of the whole step, as its Trainer passes it.
            out = model(**padded(rows[i : i + args.micro]), num_items_in_batch=trained, use_cache=False)
            out.loss.backward()
            loss += float(out.loss.detach())
        norm = float(torch.nn.utils.clip_grad_norm_(weights, CLIP, foreach=True))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {"loss": loss, "grad_norm": norm}

    serve(channel, step)


def trl(args: argparse.Namespace, rows: list[Example], channel: Channel) -> None:
    """TRL's ``SFTTrainer``: best-fit packing without padding where rows are real, the given labels."""
    import time

    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]

    packing = args.setting == "real"
    data = Dataset.from_dict({"input_ids": [row.ids for row in rows], "labels": [row.labels for row in rows]})
    settings: dict[str, Any] = {
        "output_dir": str(args.folder / "trl"),
        "per_device_train_batch_size": args.micro,
        "packing": packing,
        "max_length": args.capacity if packing else None,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "max_grad_norm": CLIP,
        "optim": "adamw_torch_fused",
        "max_steps": 10_000,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": False,
        "use_cpu": args.device == "cpu",
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }

    class Turns(TrainerCallback):
        """Waits between two steps; a step's report is the last thing that the trainer does of it."""

        started = 0.0
        done = False

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if not self.done:  # the first step has no end of another before it
                self.done = True
                channel.say(threads=torch.get_num_threads())
                self._wait()

        def on_log(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            logs = others.get("logs") or {}
            if "grad_norm" in logs:
                facts = {"loss": logs["loss"], "grad_norm": logs["grad_norm"]}
                channel.say(seconds=time.perf_counter() - self.started, **facts)
                self._wait()

        def _wait(self) -> None:
            if not channel.turn():
                raise SystemExit(0)
            self.started = time.perf_counter()

    def trainer(accumulation: int) -> Any:
        config = SFTConfig(**settings, gradient_accumulation_steps=accumulation)
        tokenizer = AutoTokenizer.from_pretrained(args.folder)
        return SFTTrainer(model, config, train_dataset=data, processing_class=tokenizer, callbacks=[Turns()])

    model = hugging_face_model(args)
    count = len(rows)
    if packing:
        from trl.data_utils import pack_dataset  # pyright: ignore[reportMissingImports]

        count = len(pack_dataset(data, args.capacity, "bfd"))
    trainer(math.ceil(count / args.micro)).train()


CONTESTANTS = {"minitune": minitune, "transformers": transformers, "trl": trl, "liger": transformers}


def main() -> None:
    """Load, and take turns."""
    parser = argparse.ArgumentParser()
    for name in ("contestant", "method", "setting", "device", "dtype", "ops"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--micro", type=int)
    parser.add_argument("--capacity", type=int)
    parser.add_argument("--compile", type=int, default=0)
    args = parser.parse_args()
    channel = Channel()
    torch.manual_seed(0)
    CONTESTANTS[args.contestant](args, read_examples(args.rows), channel)


if __name__ == "__main__":
    main()
