"""Training scripts of the shape that dLLM 0.1 taught, unchanged: names resolved under BASE_MODELS_DIR and
BASE_DATASETS_DIR, a pre-training on the column Text and a fine-tuning on alpaca, evaluated as its defaults say."""

from __future__ import annotations

import json
import runpy
import shutil

import pytest
import transformers

from dllm.demo.shipped import SHIPPED

pytest.importorskip("datasets")

ARGUMENTS = """
import functools, os
from dataclasses import dataclass
import accelerate, transformers
import dllm

log = dllm.utils.get_default_logger("old_script")

@dataclass
class Model(dllm.utils.ModelArguments):
    model_name_or_path: str = "someone/Small-BERT"

@dataclass
class Training(dllm.core.trainers.MDLMConfig):
    output_dir: str = "out"
    overwrite_output_dir: bool = True
    group_by_length: bool = {grouped}
    per_device_train_batch_size: int = 8

@dataclass
class Data(dllm.utils.DataArguments):
    dataset_args: str = {data!r}
    max_length: int = 24
    text_field: str = "Text"
    streaming: bool = False
    load_preprocessed_data: bool = False

parser = transformers.HfArgumentParser((Model, Data, Training))
model_args, data_args, training_args = parser.parse_args_into_dataclasses()
dllm.utils.print_args_main(model_args, data_args, training_args)
dllm.utils.initial_training_setup(model_args, data_args, training_args)
model, tokenizer = dllm.utils.get_model(model_args=model_args), dllm.utils.get_tokenizer(model_args=model_args)
"""
TEXTS = """
with accelerate.PartialState().local_main_process_first():
    rows = dllm.data.load_pt_dataset(data_args.dataset_args, streaming=data_args.streaming)
    cut = functools.partial(
        dllm.utils.tokenize_and_group, tokenizer=tokenizer, text_field=data_args.text_field,
        seq_length=data_args.max_length, insert_eos=True, drop_tail=True,
    )
    rows = rows.map(cut, batched=True, remove_columns=rows["train"].column_names)
collator = transformers.DataCollatorForSeq2Seq(tokenizer, return_tensors="pt", padding=True)
"""
TALKS = """
with accelerate.PartialState().local_main_process_first():
    rows = dllm.data.load_sft_dataset(data_args.dataset_args, load_preprocessed_data=data_args.load_preprocessed_data)
    to_ids = functools.partial(dllm.utils.default_sft_map_fn, tokenizer=tokenizer, mask_prompt_loss=True)
    rows = dllm.utils.post_process_dataset(rows.map(to_ids, num_proc=data_args.num_proc), data_args)
collator = dllm.utils.NoAttentionMaskWrapper(
    transformers.DataCollatorForSeq2Seq(
        tokenizer, return_tensors="pt", padding=True, label_pad_token_id=tokenizer.pad_token_id
    )
)
"""
TRAIN = """
accelerate.PartialState().wait_for_everyone()
log.info("training")
trainer = dllm.core.trainers.MDLMTrainer(
    model=model, tokenizer=tokenizer, train_dataset=rows["train"], eval_dataset=rows.get("test", None),
    args=training_args, data_collator=collator,
)
trainer.train()
final = os.path.join(training_args.output_dir, "checkpoint-final")
trainer.save_model(final)
trainer.processing_class.save_pretrained(final)
"""


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """A folder that stands in for the Hub, and one to work in."""
    shutil.copytree(SHIPPED, tmp_path / "models" / "someone" / "Small-BERT")
    for name, rows in (
        (
            "Trelis/tiny-shakespeare",
            [{"Text": f"Enter the {n}th fool, and speaks of {n}.", "id": n} for n in range(90)],
        ),
        ("tatsu-lab/alpaca", [{"instruction": f"Add 1 to {n}.", "input": "", "output": str(n + 1)} for n in range(40)]),
    ):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "data" / "Trelis/tiny-shakespeare" / "test.jsonl").write_text(
        json.dumps({"Text": "Exeunt. " * 30, "id": 0})
    )
    monkeypatch.setenv("BASE_MODELS_DIR", str(tmp_path / "models"))
    monkeypatch.setenv("BASE_DATASETS_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("data", "middle", "more"),
    [
        ("Trelis/tiny-shakespeare", TEXTS, ()),
        ("Trelis/tiny-shakespeare", TEXTS, ("--streaming", "True")),
        ("tatsu-lab/alpaca", TALKS, ("--num_proc", "1")),
    ],
    ids=["pt", "pt-streaming", "sft"],
)
def test_training(data, middle, more, offline, monkeypatch):
    script = ARGUMENTS.format(data=data, grouped=middle is TALKS) + middle + TRAIN
    monkeypatch.setattr("sys.argv", ["script.py", "--max_steps", "2", "--eval_steps", "1", "--save_steps", "2", *more])
    (offline / "script.py").write_text(script)
    namespace = runpy.run_path("script.py", run_name="old_script")  # a module, so that its classes can be pickled
    history = namespace["trainer"].state.log_history
    evaluated = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert namespace["trainer"].state.global_step == 2 and len(evaluated) == 2 and all(0 < x < 20 for x in evaluated)
    final = offline / "out" / "checkpoint-final"
    assert transformers.AutoModelForMaskedLM.from_pretrained(final).config.model_type == "modernbert"
    assert transformers.AutoTokenizer.from_pretrained(final)("What").input_ids == [582]
