"""The benchmark of requests that arrive at random: arrivals, virtual time, the client, and what its tables say."""

import http.server
import itertools
import json
import os
import threading
import time

import pytest

from benchmarks import serving, serving_tables
from benchmarks.plot import published
from benchmarks.traffic import by_http, engine
from benchmarks.traffic.client import Target, ask_at, ask_in_turn
from benchmarks.traffic.outcome import Outcome, summary
from benchmarks.traffic.requests import mixed, poisson
from benchmarks.traffic.server import cpu_seconds

pytestmark = pytest.mark.usefixtures("one_thread")


def test_arrivals_are_those_of_a_poisson_process():
    moments = poisson(4000, rate=8.0, seed=3)
    gaps = [later - earlier for earlier, later in zip([0.0, *moments], moments, strict=False)]
    assert poisson(4000, rate=8.0, seed=3) == moments != poisson(4000, rate=8.0, seed=4)
    assert min(gaps) >= 0 and sum(gaps) / 4000 == pytest.approx(1 / 8, rel=0.05)
    assert sum(gap > 1 / 8 for gap in gaps) / 4000 == pytest.approx(0.3679, abs=0.03)  # e^-1, as of no other gaps
    assert poisson(5, rate=16.0) == pytest.approx([moment / 2 for moment in poisson(5, rate=8.0)])
    with pytest.raises(ValueError, match="rate must be above 0"):
        poisson(1, rate=0.0)


def test_short_and_long_requests_are_mixed():
    requests = mixed(200)
    assert 0.65 < sum(request.kind == "short" for request in requests) / 200 < 0.85
    assert mixed(200) == requests != mixed(200, seed=1)


class Ticks:
    """A clock that says one second more each time."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


def test_virtual_time():
    """Each loop takes two ticks, one to step and one to collect; arrivals are waited for, not slept for."""
    own = engine.Engine("threshold 0.9", 0.0, "wall")
    own.clock = Ticks()
    requests = mixed(3)
    outcomes, _, steps = own.run(requests, [0.0, 1.0, 5000.0], engine.Policy(1, refills=False))
    first, second, third = outcomes
    assert steps.rows == steps.count and steps.columns == steps.real_columns
    assert first.end % 2 == 0 and second.end - first.end >= 2  # the second one begins when the first one ends
    assert third.end == 5000 + 2 * steps.count - second.end  # and the third one when it comes
    assert 5000 < third.first <= third.end


def test_every_policy_gives_the_same_tokens():
    own, requests = engine.Engine("threshold 0.9", 0.0, "cpu"), mixed(6)
    alone = None
    for name, policy in engine.policies(4).items():
        outcomes, tokens, steps = own.run(requests, [0.0] * 6, policy)
        alone = alone or tokens
        assert tokens == alone
        assert all(outcome.end >= outcome.first > outcome.arrival for outcome in outcomes)
        assert (steps.rows == steps.count) == (name == "one at a time")
        if name.startswith("static"):
            assert len({outcome.end for outcome in outcomes[:4]}) == 1 and len({o.end for o in outcomes}) == 2
    with pytest.raises(ValueError, match="sampler must be among"):
        engine.Engine("guess", 0.0, "wall")
    with pytest.raises(ValueError, match="clock must be among"):
        engine.Engine("threshold 0.9", 0.0, "moon")


class Peer(http.server.BaseHTTPRequestHandler):
    """A server of OpenAI's API that streams two chunks; every third request is refused, every fifth is cut off."""

    count = 0
    asked: tuple = ()

    def do_GET(self):
        self._answer(200, json.dumps({"data": [{"id": "m"}]}).encode())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Peer.asked += (body,)
        Peer.count += 1
        if Peer.count % 3 == 0:
            return self._answer(503, b"{}")
        events = [
            {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
            {"choices": [{"index": 0, "delta": {"content": "yes"}}]},
            {"choices": [], "usage": {"completion_tokens": 2}},
        ]
        lines = [f"data: {json.dumps(event)}\n\n" for event in events]
        ended = Peer.count % 5 != 0
        self._answer(200, ("".join([": ping\n\n", *lines]) + "data: [DONE]\n\n" * ended).encode())

    def _answer(self, status, content):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def peer():
    Peer.count, Peer.asked = 0, ()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Peer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_clients_in_turn(peer):
    outcomes = ask_in_turn(Target(peer, temperature=0.5), mixed(6), 1, limit=30)
    assert [outcome.refused for outcome in outcomes] == [None, None, "503", None, "cut off", "503"]
    assert outcomes[0].text_tokens == 2 and outcomes[0].arrival < outcomes[0].first <= outcomes[0].end
    assert all(later.arrival >= earlier.end for earlier, later in itertools.pairwise(outcomes))
    assert Peer.asked[1]["model"] == "m" and Peer.asked[1]["temperature"] == 0.5 and Peer.asked[1]["seed"] == 1
    assert summary(outcomes)["refused"] == {"503": 2, "cut off": 1}
    with pytest.raises(ValueError, match="clients must be at least 1"):
        ask_in_turn(Target(peer), mixed(1), 0, limit=30)


def test_requests_at_their_moments(peer):
    arrivals = [0.0, 0.05, 0.1]
    outcomes = ask_at(Target(peer, model="m"), mixed(3), arrivals, limit=30)
    assert [outcome.arrival for outcome in outcomes] == arrivals
    assert all(outcome.end > outcome.arrival for outcome in outcomes)
    first, late = ask_at(Target(peer, model="m"), mixed(2), [0.0, 5.0], limit=1.0)
    assert late.refused == "limit" and 1.0 <= late.end < 5.0 and first.refused is None


class Stands:
    """A place of servers of which nothing is known but a name; each answers as its process would, in no time."""

    def __init__(self, monkeypatch, seconds):
        self.asked = []
        target = Target("http://127.0.0.1:1", model="m")
        servers = [by_http.Server(name, target, None) for name in ("one at a time", "continuous 2")]
        monkeypatch.setattr(by_http, "_servers", lambda *_: servers)
        monkeypatch.setattr(by_http, "steps_of", lambda _: None)
        monkeypatch.setattr(by_http, "ask_in_turn", lambda _, asked, *__: [self._answered(r, 0.0) for r in asked])
        monkeypatch.setattr(by_http, "ask_at", self._ask_at)
        self.seconds = seconds

    def _answered(self, request, arrival):
        return Outcome(request.kind, request.new_tokens, arrival, arrival, arrival + self.seconds[request.kind])

    def _ask_at(self, target, requests, arrivals, limit):
        self.asked.append(arrivals)
        return [self._answered(*each) for each in zip(requests, arrivals, strict=True)]


def options_of(*words):
    return serving.parse(["--where", "http", "--sampler", "threshold 0.9", *words])


def test_rates_follow_from_what_requests_take_alone():
    requests, alone = mixed(40), {"short": 1.0, "long": 4.0}
    low, high, clients = by_http.runs_of(requests, alone, options_of("--loads", "0.5", "2", "--clients", "3"))
    work = sum(alone[request.kind] for request in requests)
    assert low.case["rate"] == pytest.approx(0.5 * 40 / work, abs=1e-3) and clients.seconds == work
    assert low.seconds > poisson(40, low.case["rate"])[-1] > 1.5 * work  # as long as the arrivals
    assert work <= high.seconds < 1.1 * work  # as long as the answers


def test_runs_are_told_of_before_they_begin_and_left_out_beyond_the_budget(monkeypatch, capsys):
    stands = Stands(monkeypatch, {"short": 1.0, "long": 4.0})
    options = options_of("--requests", "20", "--loads", "0.5", "0.1", "2", "--budget", "400")
    results = by_http.measure("threshold 0.9", options, time.monotonic() + 400)
    assert [(result["load"], result["policy"]) for result in results] == [
        (load, policy) for load in (0.5, 2) for policy in ("one at a time", "continuous 2")
    ]
    assert len(stands.asked) == 4
    plan, left_out = capsys.readouterr().err.splitlines()
    assert plan.startswith("threshold 0.9: load 0.5 ") and plan.endswith(" s in all, about")
    assert left_out == "threshold 0.9: load 0.1 would not end within --budget 400 and is left out"


def test_a_budget_for_nothing_is_an_error(monkeypatch, capsys, tmp_path):
    stands = Stands(monkeypatch, {"short": 1.0, "long": 4.0})
    words = ["--where", "http", "--sampler", "threshold 0.9", "--budget", "10", "--out", str(tmp_path)]
    assert serving.main(words) == 1 and not stands.asked and not list(tmp_path.iterdir())
    assert "no run would end within --budget 10" in capsys.readouterr().err


@pytest.mark.parametrize(
    "url", ["http://example.org", "https://127.0.0.1:1", "http://10.0.0.1:80", "127.0.0.1", "http://127.0.0.1:1/v1"]
)
def test_only_this_machine_is_asked(url):
    with pytest.raises(ValueError, match="a server must be given as"):
        Target(url)


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["--fast"], "unrecognized arguments"),
        (["--requests", "0"], "requests must be 1 to 10000"),
        (["--requests", "10001"], "requests must be 1 to 10000"),
        (["--loads", "0"], "loads must be finite and above 0"),
        (["--loads", "inf"], "loads must be finite and above 0"),
        (["--temperature", "nan"], "--temperature must be finite"),
        (["--limit", "0"], "--limit finite and above 0"),
        (["--budget", "0"], "--budget must be finite and above 0"),
        (["--budget", "inf"], "--budget must be finite and above 0"),
        (["--where", "engine", "--budget", "9"], "--budget need --where http"),
        (["--loads"], "must name at least one run"),
        (["--clock", "cpu", "--threads", "2"], "one thread only"),
        (["--where", "engine", "--clients", "1"], "need --where http"),
        (["--pid", "1"], "--pid and --model are those of the server at --url"),
        (["--url", "http://example.org"], "a server must be given as"),
    ],
)
def test_wrong_options(words, rule, capsys):
    try:
        code = serving.main(words)
    except SystemExit as end:
        code = end.code
    assert code == 2 and rule in capsys.readouterr().err


def test_processor_time_of_a_process():
    before = cpu_seconds(os.getpid())
    while sum(range(100_000)) and cpu_seconds(os.getpid()) < before + 0.05:
        pass
    assert cpu_seconds(os.getpid()) == pytest.approx(sum(os.times()[:4]), abs=0.1)


def test_summary_of_a_run():
    waits = [Outcome("short", 32, 0.0, 1.0, 1.0 + number) for number in range(101)]
    found = summary([*waits, Outcome("long", 128, 0.0, end=2.0, refused="503")], cpu_seconds=10.1)
    assert found["short"] == {
        "answered": 101,
        "p50": 51.0,
        "p95": 96.0,
        "p99": 100.0,
        "first_text": 1.0,
        "first_text_p95": 1.0,
    }
    assert found["answered"] == 101 and found["refused"] == {"503": 1} and "long" not in found
    assert found["cpu_s/request"] == 0.1 and found["tokens/cpu_s"] == 320.0
    with pytest.raises(ValueError, match="at least one request"):
        summary([])


def test_a_run_is_written_printed_and_drawn(tmp_path, capsys):
    words = ["--where", "engine", "--sampler", "threshold 0.9", "--requests", "4", "--loads", "2.5", "--rows", "2"]
    assert serving.main([*words, "--out", str(tmp_path)]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    row = json.loads(open(said["row"]).read())
    assert row["kind"] == "serving" and row["results"] == said["results"] and "--out" not in row["command"]
    lines = serving_tables.serving_lines(row, [row["command"]])
    assert [line[1] for line in lines] == ["engine, one at a time", "engine, static 2", "engine, continuous 2"]
    assert all(len(line) == len(serving_tables.SERVING_HEAD) and line[2] == "load 2.5" for line in lines)
    points = published.points_of("serving.svg", [row])
    assert published.read_points(published.write("serving.svg", points, tmp_path)) == points
