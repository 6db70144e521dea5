"""The benchmark of bodies on a CPU: floor, error, programs, loops, table and plot, on a model of two tiny layers."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import bodies, body_case, cpu_bodies, models, peers, table
from benchmarks.bodies import Body, OtherBody
from benchmarks.plot import bodies as plots
from benchmarks.product_floor import Products, can_pack
from dllm.fast.head.split import SplitModel
from tests.models import MASK_ID, tiny

TOKENS = torch.arange(5, 29).view(2, 12)


def load(name, dtype, device, seed=0):
    return models.Loaded(name, tiny(name).to(dtype), MASK_ID)


def run(tmp_path, capsys, *options):
    arguments = ["--repeats", "1", "--out", str(tmp_path), *options]
    assert cpu_bodies.main(arguments, load=load) == 0
    output = capsys.readouterr().out
    return json.loads(Path(json.loads(output.strip().splitlines()[-1])["row"]).read_text()), output


@pytest.mark.parametrize("family", ["modernbert", "bert"])
def test_a_body_gives_what_the_head_reads_and_leaves_the_model_as_it_was(family):
    model = tiny(family)
    logits = model(TOKENS).logits
    hidden = Body(model)(TOKENS)
    assert torch.equal(hidden, SplitModel(model, TOKENS[:1, :2]).body(TOKENS, None))
    assert torch.equal(model(TOKENS).logits, logits)
    other = OtherBody(model, lambda tokens: hidden, TOKENS.shape)
    assert torch.equal(other(TOKENS).logits, logits)
    assert torch.equal(other(TOKENS[:1]).logits, model(TOKENS[:1]).logits)


def test_the_floor_has_the_products_of_the_body():
    body = Body(tiny("modernbert"))
    products = Products(body, lambda: body(TOKENS))
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        products()
    with FlopCounterMode(display=False) as of_body, torch.no_grad():
        body(TOKENS)
    linear = {"addmm", "mm"}  # attention multiplies batches of matrices
    by_name = {str(op): flops for op, flops in of_body.get_flop_counts()["Global"].items()}
    assert products.flops == counted.get_total_flops()
    assert products.flops == sum(flops for op, flops in by_name.items() if op.rpartition(".")[2] in linear)


@pytest.mark.skipif(not can_pack(torch.float32), reason="oneDNN is not there")
def test_packed_weights_give_the_same_products():
    layer, x = nn.Linear(32, 48), torch.randn(2, 12, 32)
    products = Products(layer, lambda: layer(x), packed=True)
    found = products._product(x, products._weights[0], layer.bias, *products._beside)
    torch.testing.assert_close(found, layer(x))
    products()


def test_a_body_without_linear_layers_has_no_floor():
    with pytest.raises(ValueError, match="must run linear layers, got none in Identity"):
        Products(nn.Identity(), lambda: None)


def test_a_body_that_computes_something_else_is_not_timed():
    body = Body(tiny("bert"))
    truth = body_case.Truth(body, TOKENS)
    assert truth.check(body(TOKENS), None)["times_eager_error"] == 1.0
    assert truth.check(body(TOKENS), "int8").keys() == {"precision", "relative_error"}
    with pytest.raises(ValueError, match="at most twice that of eager float32"):
        truth.check(body(TOKENS.flip(1)), "float32")
    with pytest.raises(ValueError, match="at most twice that of eager bfloat16"):
        truth.check(body(TOKENS) * 1.1, "bfloat16")


def test_bodies_and_loops(tmp_path, capsys):
    names = [name for name, program in bodies.PROGRAMS.items() if name != "compiled"]
    row, output = run(
        tmp_path, capsys, "--model", "modernbert", "--shapes", "2x12", "--loop-steps", "2", "--bodies", *names
    )
    (result,) = row["results"]
    for name in names:
        missing = [package for package in bodies.PROGRAMS[name].packages if not peers.installed(package)]
        found = result["bodies"][name]
        if missing:
            assert found == {"error": f"ModuleNotFoundError: not installed: pip install {' '.join(missing)}"}
            assert f"{name}: ModuleNotFoundError" in output and f"card: {name}" not in result["loops"]
        else:
            assert found["share_of_floor"] > 0 and result["loops"][f"ours-eager: {name}"]["tokens_per_second"] > 0
    exact = [name for name in names if bodies.PROGRAMS[name].precision in (None, "float32")]
    loops = {name: loop for name, loop in result["loops"].items() if name.partition(": ")[2] in exact}
    assert {loop["same_tokens"] for name, loop in loops.items() if name != "card: eager"} == {1.0}
    assert loops["card: eager"]["speedup"] == 1.0
    assert "| modernbert float32 |" in table.table([row])


def test_a_floor_in_bfloat16_and_a_plot_of_growth(tmp_path, capsys):
    shapes, plot = ["1x12", "1x24", "2x12", "3x12"], tmp_path / "growth.png"
    options = ["--shapes", *shapes, "--loop-steps", "0", "--bodies", "eager", "--plot", str(plot)]
    row, _ = run(tmp_path, capsys, "--model", "bert", "--dtype", "bfloat16", *options)
    assert plot.stat().st_size > 0
    points = plots.growth_points([row])
    assert [(point["batch"], point["length"], point["program"]) for point in points[2:4]] == [
        (1, 24, plots.FLOOR),
        (1, 24, "eager"),
    ]
    by_length, by_batch = plots.draw_growth(points).axes
    assert [list(line.get_xdata()) for line in by_length.lines] == [[12, 24]] * 2
    assert [list(line.get_xdata()) for line in by_batch.lines] == [[1, 2, 3]] * 2


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ("--shapes 12", "a shape must be batch x length, as in 8x192, got '12'"),
        ("--shapes 0x12", "got '0x12'"),
        ("--shapes 1x1", "at least 2 tokens"),
        ("--repeats 0", "--repeats must be at least 1, got 0"),
        ("--loop-steps -1", "--loop-steps must be at least 0, got -1"),
        ("--plot a.png", "at least 3 shapes, got 1"),
    ],
)
def test_options_are_checked(options, rule, capsys):
    with pytest.raises(SystemExit):
        cpu_bodies.parse(options.split())
    assert rule in capsys.readouterr().err


def test_a_model_that_does_not_exist(capsys):
    assert cpu_bodies.main(["--model", "nowhere"]) == 2
    assert "a local folder, got 'nowhere'" in capsys.readouterr().err


def test_a_canvas_longer_than_the_model(capsys):
    assert cpu_bodies.main(["--model", "bert", "--shapes", "1x12", "1x97"], load=load) == 2
    assert "a canvas must fit the model's 96 positions, got 97" in capsys.readouterr().err


def test_an_unknown_body(tmp_path):
    with pytest.raises(ValueError, match="a body must be one of eager"):
        bodies.prepare("tensorrt", Body(tiny("bert")), TOKENS, tmp_path)
