"""`dllm serve` as a process: what it refuses to start with, and how it ends."""

import gc
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import transformers

from dllm.cli import _parser, main
from dllm.core.samplers import FastDLLMSampler, FastDLLMSamplerConfig
from dllm.serve.command import _bound, served_name, settings_of
from dllm.serve.engine import Engine
from dllm.serve.process import _Server, serve
from dllm.serve.settings import Settings
from tests import programs
from tests.causal_models import EOS, causal_model
from tests.live_server import until
from tests.models import MASK_ID

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "What is 12 * 4?"}]}


@pytest.fixture
def no_key(monkeypatch):
    monkeypatch.delenv("DLLM_API_KEY", raising=False)


WRONG = {
    "--host 0.0.0.0": "--insecure",
    "--port 70000": "--port must lie in",
    "--rows 0": "rows must be at least 1",
    "--timeout 0": "timeout must be above 0",
    "--api-key ä": "printable ASCII",
    "--api-key-file nowhere": "nowhere: No such file",
    "--allowed-host model.example:8000": "a host name without a port, got 'model.example:8000'",
    "--host no.such.host.invalid --insecure": "cannot listen at no.such.host.invalid:0",
    "--max-length 1": "there must be room",
    "--steps 0": "steps must be at least 1",
    "--steps 1000000000": "a block must take at most 16384 steps, got 1000000000",
    "--sampler llama": "the sampler must be one of",
    "--sampler threshold --steps 5": "has no steps",
    "--setting remasking=best": "remasking must be one of",
    "--setting colour=red": "--setting takes NAME=VALUE",
    "--setting steps": "--setting takes NAME=VALUE",
    "--setting cfg_scale=much": "--setting cfg_scale must be float",
    "no/such/folder": "no/such/folder",
}


@pytest.mark.parametrize("options", WRONG)
def test_what_cannot_be_is_said_in_one_line(options, no_key, capfd):
    assert main(["serve", "--port", "0", *options.split()]) == 2
    told = capfd.readouterr().err
    assert WRONG[options] in told and told.count("\n") == 1 and told.startswith("dllm serve: ")


def test_a_model_with_a_loop_of_its_own_is_refused_before_its_weights_are_read(no_key, capfd, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "diffusion_gemma"}))
    assert main(["serve", "--port", "0", str(tmp_path)]) == 2
    told = capfd.readouterr().err
    if tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 12):
        assert "a DiffusionGemma cannot be served" in told
    assert told.count("\n") == 1


@pytest.mark.parametrize("cache", [None, "prefix"])
def test_rows_that_run_one_at_a_time_are_told_of(cache, monkeypatch, caplog):
    tokenizer = SimpleNamespace(mask_token_id=MASK_ID, eos_token_id=EOS, pad_token_id=1)
    sampler = FastDLLMSampler(causal_model(), tokenizer)
    engine = Engine(sampler, FastDLLMSamplerConfig(max_new_tokens=8, block_size=4, cache=cache), name="tiny")
    monkeypatch.setattr(_Server, "run", lambda server, sockets: None)
    with _bound("127.0.0.1", 0) as address:
        serve(engine, Settings(), address)
    assert gc.get_freeze_count() > 0  # collections pass over what is loaded
    gc.unfreeze()
    assert ("one row runs at a time, whatever --rows says" in caplog.text) == bool(cache)


def test_a_taken_port(no_key, capfd):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "--port", str(taken.getsockname()[1])]) == 2
    assert "cannot listen at 127.0.0.1" in capfd.readouterr().err


def test_a_server_that_still_loads_keeps_its_port_and_one_that_has_ended_does_not():
    first = _bound("127.0.0.1", 0)
    port = first.getsockname()[1]
    with first, pytest.raises(OSError, match=r"cannot listen at 127\.0\.0\.1"):
        _bound("127.0.0.1", port)
    _bound("127.0.0.1", port).close()


def test_names_of_models(no_key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words, name in (
        (["."], tmp_path.name),
        (["org/model"], "model"),
        ([], "dllm-shipped"),
        ([".", "--name", "a"], "a"),
    ):
        assert served_name(_parser().parse_args(["serve", *words])) == name


def test_what_is_not_installed_is_said(no_key, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert main(["serve", "--port", "0"]) == 2
    assert 'dllm serve needs fastapi, which is not installed: pip install "dllm[serve]"' in capfd.readouterr().err
    monkeypatch.setattr(sys, "version_info", (3, 10, 13))
    assert main(["serve", "--port", "0"]) == 2
    assert "dllm serve needs Python 3.11 or later, as FastAPI does" in capfd.readouterr().err


def test_keys_and_hosts_of_the_options(tmp_path, monkeypatch):
    (tmp_path / "keys").write_text("one\ntwo\n")
    monkeypatch.setenv("DLLM_API_KEY", "three")
    words = ["serve", "--api-key-file", str(tmp_path / "keys"), "--api-key", "four", "--host", "0.0.0.0"]
    settings = settings_of(_parser().parse_args(words))
    assert set(settings.api_keys) == {"one", "two", "three", "four"} and settings.hosts is None
    local = settings_of(_parser().parse_args(["serve", "--allowed-host", "Model.example"]))
    assert {"127.0.0.1", "localhost", "::1", "model.example"} == set(local.hosts)
    (tmp_path / "keys").write_text("\n a key of words \r\n\n")
    assert "a key of words" in settings_of(_parser().parse_args(words)).api_keys
    for content, rule in ((b"\n", "at least one key"), (b"\xff\n", "a text in UTF-8, got other bytes: .*keys")):
        (tmp_path / "keys").write_bytes(content)
        with pytest.raises(ValueError, match=rule):
            settings_of(_parser().parse_args(words))


def test_an_interruption_while_it_imports_and_loads():
    command = [sys.executable, "-m", "dllm.cli", "serve", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=programs.ROOT)
    until(lambda: "libtorch" in Path(f"/proc/{process.pid}/maps").read_text(), 60)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "dllm serve: interrupted\n") and process.returncode == 130


def start(tmp_path, *options):
    """A server of its own, and the address that it prints once it is ready."""
    environment = {"DLLM_API_KEY": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    streams = [tmp_path / name for name in ("in", "out", "err")]
    for path in streams:
        path.touch()
    words = ["-m", "dllm.cli", "serve", "--port", "0", *options]
    process = programs.start(words, environment=environment, streams=streams)
    until(lambda: "\n" in streams[1].read_text() or not process.is_alive(), 120)
    assert process.is_alive(), streams[2].read_text()
    return process, streams[1].read_text().split()[-1]


def test_term_ends_it_and_what_runs_ends_with_what_it_has(tmp_path):
    process, url = start(tmp_path, "--grace", "0.3", "--gen-length", "160", "--name", "mine")
    try:
        assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == "mine"
        with httpx.stream("POST", url + CHAT, json=BODY | {"stream": True, "n": 8}, timeout=120) as response:
            lines = response.iter_lines()
            assert '"role":"assistant"' in next(lines)
            process.terminate()
            began = time.monotonic()
            told = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        reasons = [chunk["choices"][0]["finish_reason"] for chunk in told if chunk["choices"][0]["finish_reason"]]
        assert reasons == ["abort"] * 8
        process.join(60)
        assert process.exitcode == -signal.SIGTERM and time.monotonic() - began < 30
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health/live")
    finally:
        process.kill()
        process.join()
    told = (tmp_path / "err").read_text()
    assert "12 * 4" not in told and "Traceback" not in told and "8 rows" in told
