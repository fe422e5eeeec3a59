"""Tokens a CPU-second of our trainer against TRL's own SFTTrainer: same base model, adapter, rows and settings.

The two take turns in one process (other load on the machine meets both), each from a fresh adapter. Prints one JSON object:
`ratio` is ours over TRL's. About four minutes on two cores; `--tiny` shows that it runs, its ratio means nothing.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: waiting threads would be counted as working

import torch
from datasets import Dataset
from transformers import AutoTokenizer, PrinterCallback
from trl import SFTTrainer

from stillhouse.examples.order_desk.gold import clean_trajectory
from stillhouse.examples.order_desk.tasks import make_tasks
from stillhouse.schemas.messages import Message
from stillhouse.schemas.render import Renderer, RenderSpec
from stillhouse.trainer import models
from stillhouse.trainer.collate import Row, items_of, row_of
from stillhouse.trainer.training import adapted_model, make_trainer
from stillhouse.trainer.training_job import TrainJob, TrainSettings


def desk_rows(renderer: Renderer, count: int) -> list[Row]:
    rows = []
    for task in make_tasks("train", count, seed=1):
        messages = [Message(role="system"), *clean_trajectory(task)]
        rows.append(row_of(renderer.encode(messages, supervised=[m.role == "assistant" for m in messages])))
    return rows


def ours(job: TrainJob, rows: Sequence[Row]) -> dict[str, Any]:
    trainer = make_trainer(job, adapted_model(job), rows, [], lambda _: None)
    seconds = cpu_of(trainer)
    return {"tokens": trainer.state.log_history[-1]["tokens"], "cpu_s": seconds, "loss": trainer.state.log_history[-1]["train_loss"]}


def trls(job: TrainJob, rows: Sequence[Row]) -> dict[str, Any]:
    model = adapted_model(job)
    args = make_trainer(job, model, rows, [], lambda _: None).args  # the same settings
    args.logging_steps, args.save_strategy = 10, "no"  # TRL's default; and it does not pay for our checkpoints
    items = [{"input_ids": i["input_ids"], "labels": i["labels"]} for i in items_of(rows)]
    tokenizer = AutoTokenizer.from_pretrained(job.base_model, local_files_only=True)
    trainer = SFTTrainer(model=adapted_model(job), args=args, train_dataset=Dataset.from_list(items), processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    seconds = cpu_of(trainer)
    history = trainer.state.log_history
    tokens = [entry["num_tokens"] for entry in history if "num_tokens" in entry][-1]
    return {"tokens": tokens, "cpu_s": seconds, "loss": history[-1]["train_loss"]}


def cpu_of(trainer: Any) -> float:
    start = time.process_time()
    trainer.train()
    return time.process_time() - start


def total(runs: Sequence[dict[str, Any]]) -> float:
    return float(sum(r["tokens"] for r in runs) / sum(r["cpu_s"] for r in runs))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(2)
    measured: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": []}
    with tempfile.TemporaryDirectory() as scratch:
        base = models.tiny(Path(scratch) / "tiny", 1) if options.tiny else models.fetch(progress=lambda said: print(said, file=sys.stderr))
        spec = RenderSpec(system="replace", system_prompt="Order desk agent.", tools="drop", grammar="bare-json").for_model(base)
        rows = desk_rows(Renderer(spec, base), 2 * options.steps)
        for turn in range(options.rounds):
            for name, run in (("ours", ours), ("trl", trls)):
                settings = TrainSettings(max_steps=options.steps, evaluations=1, threads=2, precision="float32")
                out = Path(scratch) / f"{name}-{turn}"
                measured[name].append(run(TrainJob(base_model=base, parent=None, render=spec, settings=settings, out=out), rows))
    rates = {name: total(runs) for name, runs in measured.items()}
    supervised = sum(r.supervised for r in rows) / sum(len(r.ids) for r in rows)
    print(json.dumps({"tokens_per_cpu_s": rates, "ratio": rates["ours"] / rates["trl"], "supervised_share": supervised, "runs": measured}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
