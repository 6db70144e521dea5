"""Conversations and texts in the formats that they are published in: rows with the columns of the data set named."""

import functools
import json

import pytest

from dllm.data import load_pt_dataset, load_sft_dataset
from dllm.data.chat import check_messages
from dllm.data.formats import DEFAULT_PARTS, default_parts
from tests.data.rows import questions, talk, write

pytest.importorskip("datasets")

Q, A = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
SYSTEM = {"role": "system", "content": "S"}

CONVERSATIONS = {
    "tatsu-lab/alpaca": ({"instruction": "Q", "input": "", "output": "A", "text": "Below is an instruction"}, [Q, A]),
    "allenai/tulu-3-sft-mixture": ({"id": "1", "messages": [SYSTEM, Q, A], "source": "x"}, [SYSTEM, Q, A]),
    "HuggingFaceTB/smoltalk": ({"messages": [Q, A], "source": "x"}, [Q, A]),
    "HuggingFaceH4/ultrachat_200k": ({"prompt": "Q", "prompt_id": "1", "messages": [Q, A]}, [Q, A]),
    "OpenCoder-LLM/opc-sft-stage1": ({"instruction": "Q", "output": "A", "tag": "x"}, [Q, A]),
    "OpenCoder-LLM/opc-sft-stage2": (
        {"seq_id": 1, "instruction": "Q", "output": "A", "code": "x", "entry_point": "f", "testcase": ["y"]},
        [Q, A],
    ),
    "databricks/databricks-dolly-15k": (
        {"instruction": "Q", "context": "C", "response": "A", "category": "x"},
        [{"role": "user", "content": "Q\n\nC"}, A],
    ),
    "teknium/OpenHermes-2.5": (
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "system_prompt": "S"},
        [SYSTEM, Q, A],
    ),
    "Open-Orca/OpenOrca": ({"id": "1", "system_prompt": "S", "question": "Q", "response": "A"}, [SYSTEM, Q, A]),
    "Open-Orca/OpenOrca, no system": ({"id": "1", "system_prompt": "", "question": "Q", "response": "A"}, [Q, A]),
    "openai/gsm8k": ({"question": "Q", "answer": "A"}, [Q, A]),
    "meta-math/MetaMathQA": ({"type": "x", "query": "Q", "original_question": "y", "response": "A"}, [Q, A]),
    "AI-MO/NuminaMath-1.5": ({"problem": "Q", "solution": "A", "answer": "x"}, [Q, A]),
    "openbmb/UltraChat": ({"id": "1", "data": ["Q", "A", "Q", "A"]}, [Q, A, Q, A]),
    "prompts and completions": ({"prompt": "Q", "completion": "A"}, [Q, A]),
    "prompts and completions of messages": ({"prompt": [SYSTEM, Q], "completion": [A]}, [SYSTEM, Q, A]),
    "alpaca with a system message": ({"instruction": "Q", "output": "A", "system": "S"}, [SYSTEM, Q, A]),
    "alpaca with a history": (
        {"instruction": "Q", "input": "I", "output": "A", "history": [["Q", "A"], ["Q", "A"]]},
        [Q, A, Q, A, {"role": "user", "content": "Q\n\nI"}, A],
    ),
    "messages with a system column": ({"messages": [Q, A], "system": "S"}, [SYSTEM, Q, A]),
}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TOOLS = [{"type": "function", "function": {"name": "add"}}]

TEXTS = {
    "mlfoundations/dclm-baseline-1.0": {"bff_contained_ngram_count_before_dedupe": 1, "text": "T", "url": "x"},
    "HuggingFaceFW/fineweb": {"text": "T", "id": "1", "language": "en"},
    "OpenCoder-LLM/opc-fineweb-code-corpus": {"url": "x", "text": "T", "program_lang": "python"},
    "OpenCoder-LLM/opc-annealing-corpus": {"text": "T", "original_data": "{}"},
    "Trelis/tiny-shakespeare": {"Text": "T"},
    "tiiuae/falcon-refinedweb": {"content": "T", "url": "x"},
    "togethercomputer/RedPajama-Data-V2": {"raw_content": "T", "doc_id": "1"},
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversations(folder, name):
    row, expected = CONVERSATIONS[name]
    found = load_sft_dataset(write(folder / "train.jsonl", [row]))["train"][0]
    said = [{key: message[key] for key in ("role", "content")} for message in found["messages"]]
    assert said == expected


def test_formats_join(folder):
    names = [write(folder / f"{i}.jsonl", [row]) for i, (row, _) in enumerate(CONVERSATIONS.values())]
    joined = load_sft_dataset("+".join(names))["train"]
    assert [row["messages"] for row in joined] == [expected for _, expected in CONVERSATIONS.values()]
    assert joined.column_names == ["messages"]


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("streaming", [True, False])
def test_texts(folder, name, streaming):
    """As they are published, and with others as `text`."""
    load = functools.partial(load_pt_dataset, streaming=streaming, repeat=False)
    row = write(folder / "train.jsonl", [TEXTS[name]])
    assert list(load(row)["train"]) == [TEXTS[name]]
    other = write(folder / "other.jsonl", [{"text": "U", "language": "en"}])
    assert list(load(f"{row}+{other}")["train"]) == [{"text": "T"}, {"text": "U"}]


def test_splits_of_ultrachat(folder):
    for number, split in enumerate(("train_sft", "test_sft", "train_gen", "test_gen")):
        write(folder / "chat" / "data" / f"{split}-00000-of-00001.jsonl", [talk(number)])
    found = load_sft_dataset(f"{folder / 'chat'}[test:1]")
    assert {split: questions(rows) for split, rows in found.items()} == {"train": [0], "test": [1]}


def test_all_parts_are_taken_where_none_is_named(folder):
    name = folder / "OpenCoder-LLM" / "opc-sft-stage2"
    for number, part in enumerate(default_parts(str(name))):
        write(name / part / "train.jsonl", [{"instruction": f"{number}?", "output": "A"}])
    found = load_sft_dataset(str(name))
    assert sorted(questions(found["train"]) + questions(found["test"])) == [0, 1, 2, 3]
    assert questions(load_sft_dataset(f"{name}[name:mceval_instruct]")["train"]) == [2]
    assert len(DEFAULT_PARTS) == len({known.lower() for known in DEFAULT_PARTS})


def test_a_speaker_of_unknown_role(folder):
    row = {"conversations": [{"from": "human", "value": "Q"}, {"from": "robot", "value": "A"}]}
    with pytest.raises(ValueError, match=r"from one of system, human, .*, got 'robot'"):
        load_sft_dataset(write(folder / "train.jsonl", [row]))
    row = {"conversations": [{"speaker": "human"}]}
    with pytest.raises(ValueError, match="a message must have a role and a content"):
        load_sft_dataset(write(folder / "other.jsonl", [row]))


def test_what_messages_have_beside_their_content_is_joined(folder):
    """Tools, calls, reasoning and weights of one data set, beside another that has none of them."""
    called = [Q, {"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "1"}]
    weighed = [{"from": "human", "value": "Q", "weight": 0}, {"from": "gpt", "value": "A", "weight": 1}]
    thought = {**A, "reasoning_content": "R"}
    rows = [
        {"messages": [*called, A], "tools": TOOLS},
        {"conversations": weighed},
        {"messages": [Q, thought], "note": "x"},
        {"instruction": "Q", "output": "A"},
    ]
    names = [write(folder / f"{number}.jsonl", [row]) for number, row in enumerate(rows)]
    joined = load_sft_dataset("+".join(names))["train"]
    assert [json.loads(row["tools"] or "null") for row in joined] == [TOOLS, None, None, None]
    first, second, third, fourth = (check_messages(row["messages"]) for row in joined)
    assert first == [Q, {"role": "assistant", "content": None, "tool_calls": [CALL]}, called[2], A]
    assert second == [Q, {**A, "weight": 1.0}] and third == [Q, thought] and fourth == [Q, A]


def test_calls_of_sharegpt(folder):
    turns = [("human", "Q"), ("function_call", json.dumps(CALL["function"])), ("observation", "1"), ("gpt", "A")]
    row = {"conversations": [{"from": who, "value": said} for who, said in turns], "tools": json.dumps(TOOLS)}
    found = load_sft_dataset(write(folder / "train.jsonl", [row]))["train"][0]
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    assert check_messages(found["messages"]) == [Q, called, {"role": "tool", "content": "1"}, A]
    assert json.loads(found["tools"]) == TOOLS


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        ({"conversations": [{"from": "function_call", "value": "add(1)"}]}, "must be JSON with name and arguments"),
        ({"instruction": "Q", "output": "A", "history": [["Q"]]}, r"pairs \[question, answer\], got \[\['Q'\]\]"),
        ({"conversations": [{"from": "system", "value": "S"}], "system": "T"}, "one system message, got 'T' and 'S'"),
        ({"instruction": "Q", "output": None}, "row 1 of .*train.jsonl: a message's content must be text, got None"),
    ],
)
def test_what_cannot_be_carried_names_the_row(folder, row, rule):
    good = {name: "Q" if isinstance(value, str) or value is None else [] for name, value in row.items()}
    good |= {"conversations": [{"from": "human", "value": "Q"}]} if "conversations" in row else {}
    with pytest.raises(ValueError, match=rule):
        load_sft_dataset(write(folder / "train.jsonl", [good | {"system": None}, row]))
