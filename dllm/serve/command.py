"""The command `dllm serve`: its options, and what they make of a model, a sampler and a server."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import ipaddress
import os
import socket
import sys
import typing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from dllm.chat.options import chosen_sampler
from dllm.chat.program import Loader, load_chosen
from dllm.core.samplers import BaseSamplerConfig
from dllm.core.samplers.families import SamplerChoice
from dllm.exits import usage
from dllm.fast.model import input_embedding
from dllm.models.sources import check_source, config_at
from dllm.serve.engine import GRID, Engine
from dllm.serve.settings import LOCAL_HOSTS, Settings
from dllm.values import parse_value

ROWS = {"cpu": 16, "cuda": 64}
KEY_VARIABLE = "DLLM_API_KEY"
SHIPPED_NAME = "dllm-shipped"
WIDTHS = {"grid": GRID, "tight": None}


def main(options: argparse.Namespace, load_shipped: Loader) -> int:
    """Run `dllm serve` until a signal ends it; returns 0.

    Args:
        options: those of `dllm serve --help`.
        load_shipped: loads the bundled model; see :func:`dllm.chat.program.main`.

    Raises:
        UsageError: an option is invalid, the address is taken, or the model cannot be loaded or served.
    """
    with contextlib.ExitStack() as stack:
        with usage():
            check_installed()
            settings = settings_of(options)
            address = stack.enter_context(_bound(options.host, options.port))
            with ThreadPoolExecutor(1) as thread:
                engine, settings = thread.submit(_ready, options, load_shipped, settings).result()
        from dllm.serve.process import serve

        serve(engine, settings, address)
    return 0


def _ready(options: argparse.Namespace, load_shipped: Loader, settings: Settings) -> tuple[Engine, Settings]:
    """What is served, once it has generated a token, and the settings with the number of rows.

    It runs in a thread that ends: OpenMP keeps threads for each thread that has run the model, and where all of these
    are more than the CPUs, none of them waits actively for the next operation of a step.
    """
    engine = engine_of(options, load_shipped)
    device = input_embedding(engine.sampler.model).device.type
    settings = dataclasses.replace(settings, rows=options.rows or ROWS.get(device, ROWS["cuda"]))
    engine.warm_up(settings.rows)
    return engine, settings


def check_installed() -> None:
    """Check that FastAPI and what goes with it are there.

    Raises:
        ImportError: they are not, or cannot be with this Python.
    """
    if sys.version_info < (3, 11):
        raise ImportError(f"dllm serve needs Python 3.11 or later, as FastAPI does, got {sys.version.split()[0]}")
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ImportError(f'dllm serve needs {error.name}, which is not installed: pip install "dllm[serve]"') from None


def settings_of(options: argparse.Namespace) -> Settings:
    """The settings of the server.

    Raises:
        ValueError: an option breaks a rule, or the server could be called from elsewhere without a key.
        OSError: the file of keys cannot be read.
    """
    keys, local = _keys(options), _is_local(options.host)
    if not local and not keys and not options.insecure:
        raise ValueError(
            f"whoever reaches {options.host} could use the server: give --api-key-file, --api-key or {KEY_VARIABLE}, "
            "or --insecure"
        )
    named = tuple(_host_name(host) for host in options.allowed_host)
    hosts = (*LOCAL_HOSTS, options.host.lower(), *named) if local or named else None
    return Settings(
        rows=1 if options.rows is None else options.rows,
        max_queue=options.max_queue,
        timeout=options.timeout,
        grace=options.grace,
        max_in_flight=options.max_in_flight,
        api_keys=keys,
        hosts=hosts,
        page=options.page,
    )


def engine_of(options: argparse.Namespace, load_shipped: Loader) -> Engine:
    """What is served: the model that the options name, and its sampler.

    Raises:
        OSError, TypeError, ValueError: the model cannot be loaded, or its sampler has no such setting.
    """
    if options.model is not None:
        _check_kind(options.model)
    model, tokenizer = load_chosen(options, load_shipped)
    kind, config = chosen_sampler(options, model)
    config = _with_settings(SamplerChoice(kind, config), options.setting)
    sampler, name = kind(model.requires_grad_(False), tokenizer), served_name(options)
    return Engine(sampler, config, name=name, width_multiple=WIDTHS[options.width], max_length=options.max_length)


def _check_kind(source: str) -> None:
    """Check that a model is one whose sampler rows can join, before its weights are read.

    Raises:
        OSError: it does not exist.
        ValueError: its sampler has a loop of its own.
    """
    if config_at(check_source(source)).get("model_type") == "diffusion_gemma":
        raise ValueError("a DiffusionGemma cannot be served: rows cannot join its sampler's loop (dllm chat runs it)")


def served_name(options: argparse.Namespace) -> str:
    """The name under which a model is served: `--name`, else the last part of the folder's or the model's name."""
    if options.name is not None:
        return options.name
    # of the absolute path, as "." has no last part
    return Path(os.path.abspath(options.model)).name if options.model else SHIPPED_NAME


def _with_settings(chosen: SamplerChoice, pairs: list[str]) -> BaseSamplerConfig:
    """The sampler's settings with those of `--setting NAME=VALUE`."""
    kinds, changed = typing.get_type_hints(type(chosen.config)), {}
    known = {field.name for field in dataclasses.fields(chosen.config)}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or name not in known:
            raise ValueError(f"--setting takes NAME=VALUE of a setting of {chosen.sampler.__name__}, got {pair!r}")
        changed[name] = parse_value(f"--setting {name}", text, kinds[name])
    config = dataclasses.replace(chosen.config, **changed)
    config.check()
    return config


def _keys(options: argparse.Namespace) -> tuple[str, ...]:
    """The keys of the options, the file and the environment: all that are given."""
    keys: list[str] = [*options.api_key]
    if options.api_key_file is not None:
        keys += _keys_in(options.api_key_file)
    keys += os.environ.get(KEY_VARIABLE, "").split()
    return tuple(dict.fromkeys(keys))


def _keys_in(file: str) -> list[str]:
    """The keys of a file, one a line; empty lines are passed over."""
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"--api-key-file must be a text in UTF-8, got other bytes: {file}") from None
    if not (keys := [key for line in lines if (key := line.strip())]):
        raise ValueError(f"--api-key-file must hold at least one key, got an empty file: {file}")
    return keys


def _host_name(host: str) -> str:
    """A name as it is compared with that of a Host header, which has no port there."""
    if not host or urlsplit(f"//{host}").hostname != host.lower():
        raise ValueError(f"--allowed-host takes a host name without a port, got {host!r}")
    return host.lower()


def _is_local(host: str) -> bool:
    if host in LOCAL_HOSTS:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bound(host: str, port: int) -> socket.socket:
    """A socket at an address, which nobody can connect to yet, nor another server take.

    Raises:
        OSError: the address is taken, or none of this machine.
    """
    if not 0 <= port < 2**16:
        raise ValueError(f"--port must lie in [0, {2**16}), got {port}")
    found = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        if found is not None:
            found.close()
        raise OSError(f"cannot listen at {host}:{port}: {error.strerror}") from None
    # two sockets that both allow it may be bound to one address until one of them listens, which is after the load
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    return found
