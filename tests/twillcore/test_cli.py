"""The command line: what it prints, what it writes, and how it refuses."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from torch import nn

from tests.agree.maps import CNN
from twillcore import cli
from twillcore.cache import cached_file, content_key
from twillcore.config import PRESETS, load_config
from twillcore.image import Image
from twillcore.models.digits import load_digits

COMMANDS = [module.__name__.rpartition(".")[2] for module in cli.COMMANDS]


@pytest.fixture
def call(capsys):
    """Run a command; returns its exit code, stdout and stderr."""

    def run(*arguments):
        with pytest.raises(SystemExit) as left:
            cli.main([str(argument) for argument in arguments])
        code, captured = left.value.code, capsys.readouterr()
        if isinstance(code, str):  # what Python itself prints when it leaves
            return 1, captured.out, captured.err + code
        return code or 0, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def mlp(tmp_path_factory):
    """A small network: MODEL.pt2, calibration, inputs, and its outputs in fp32."""
    folder = tmp_path_factory.mktemp("mlp")
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 10)).eval()
    x = torch.randn(12, 24)
    torch.export.save(torch.export.export(module, (x[:4],)), folder / "mlp.pt2")
    np.savez(folder / "in.npz", input=x.numpy())
    np.savez(folder / "unnamed.npz", x.numpy())
    return folder, x, module(x).detach().numpy()


@pytest.fixture(scope="module")
def program(mlp):
    folder, _, _ = mlp
    path = folder / "mlp.twill"
    with pytest.raises(SystemExit) as left:
        cli.main(
            ["compile", str(folder / "mlp.pt2"), "--calibration", str(folder / "in.npz"),
             "--config", "tiny", "-o", str(path)]
        )  # fmt: skip
    assert not left.value.code
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(call, command):
    code, out, _ = call(command, "--help")
    assert code == 0
    assert f"twillcore {command}" in out.partition("Examples:")[2]


def test_version_and_module_entry_point():
    done = subprocess.run(
        [sys.executable, "-m", "twillcore.cli", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("twillcore ")


@pytest.mark.parametrize(
    "arguments",
    [(), ("fly",), ("gemm", 1, 2), ("gemm", 1, 2, "x"), ("gemm", 1, 2, 3, "--engine", "abacus"),
     ("gemm", 1, 2, 3, "--memory-latency", 0), ("profile", "p"), ("config",)],
)  # fmt: skip
def test_wrong_usage_leaves_with_2(call, arguments):
    code, out, _ = call(*arguments)
    assert code == 2
    assert not out or not arguments  # help goes to stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gemm", 1, 0, 1), "dimensions must be at least 1, not 1 x 0 x 1"),
        (("gemm", 8, 8, 8, "--sparsity", "2/4"), "sparsity must be 'dense' or N:M such as 2:4"),
        (("gemm", 8, 8, 8, "--sparsity", "2:3"), "3 does not divide the block of 8"),
        (("gemm", 8, 8, 8, "--config", "mega"), "no configuration 'mega'"),
        (("gemm", 8, 8, 8, "--engine", "cycle", "--vcd", "x"), "--vcd needs --engine rtl"),
        (("gemm", 8, 8, 8, "--vcd-window", "1:2"), "--vcd-window needs --vcd FILE"),
        (("gemm", 8, 8, 8, "--vcd", "x", "--vcd-window", "9:2"), "START < STOP, not '9:2'"),
        (("gemm", 8, 8, 8, "--core", "lut"), "configuration 'u256' has no LUT core"),
        (("gemm", 8, 8, 8, "--weight-bits", 4), "--weight-bits is for the LUT core"),
        (("gemm", 8, 8, 8, "--core", "lut", "--sparsity", "2:4"), "--sparsity is for the DSP core"),
        (("conv", 4, 4, 8, 8, 3, "--stride", 0), "stride must be at least 1, not 0"),
        (
            ("conv", 4, 4, 8, 8, 3, "--dilation", "1,2,3"),
            "--dilation must be a number or DOWN,RIGHT, as 1,2, not '1,2,3'",
        ),
        (("conv", 4, 4, 8, 8, "x"), "K must be a number or DOWN,RIGHT, as 1,2, not 'x'"),
        (("conv", 4, 4, 8, 8, 7, "--padding", 1), "larger than the padded image of 6 x 6"),
        (("conv", 8, 8, 8, 9, 3, "--groups", 2), "9 output channels are not divisible by 2 groups"),
        (("run", "resnet"), "no network 'resnet': there is minilm, resnet18, mobilenetv2, digits"),
        (("run", "resnet18", "--text", "a", "--tokens", 3), "images, and not --text, --tokens"),
        (("run", "minilm", "--seed", 0, "--policy", "p"), "takes text, and not --seed, --policy"),
        (("run", "resnet18", "--image", __file__), "needs an image, PNG or JPEG"),
        (("run", "digits-cnn", "--image", "x.png"), "x.png: cannot be read: No such file"),
        (("run", "digits-cnn", "--seed", 449, "--count", 2), "there are 450 test images, not 451"),
        (("run", "digits-cnn", "--policy", "none"), "none: cannot be read"),
        (
            ("run", "digits-cnn", "--policy", "x", "--sparsity", "2:4"),
            "--sparsity and --lut-bits are for runs without --policy",
        ),
        (("run", "digits-cnn", "--sparsity", "2:3"), "3 does not divide the block of 8"),
        (("run", "digits-cnn", "--config", "u256", "--lut-bits", 4), "'u256' has no LUT core"),
        (("run", "minilm", "--tokens", 1), "tokens must be 3..512, not 1"),
        (("disasm", "missing"), "missing: cannot be read: No such file"),
        (("inspect", __file__), "not a Twillcore program"),
        (("compile", "missing.pt2", "-o", "x"), "missing.pt2: no such file"),
        (("compile", __file__, "-o", "x"), "torch.export.save is needed"),
        (("config", "tiny", "-o", "/no/where"), "/no/where: cannot be written"),
    ],
)
def test_errors_are_one_message_and_1(call, arguments, message):
    code, out, err = call(*arguments)
    assert code == 1
    assert not out
    assert err.rpartition("\n")[2].startswith("error: ")
    assert message in err
    assert "Traceback" not in err


def test_config_prints_and_writes_what_config_reads(call, tmp_path):
    code, out, _ = call("config", "tiny")
    assert code == 0
    path = tmp_path / "mine.toml"
    path.write_text(out.replace("lanes = 4", "lanes = 8"))
    assert load_config(path) == PRESETS["tiny"].replace(lanes=8)
    other = tmp_path / "other.toml"
    assert call("config", path, "-o", other)[0] == 0
    assert load_config(other) == load_config(path)


@pytest.mark.parametrize("engine", ["reference", "functional", "cycle"])
def test_gemm_json(call, engine):
    code, out, _ = call(
        "gemm", 9, 20, 11, "--config", "tiny", "--engine", engine, "--sparsity", "1:4", "--json"
    )
    assert code == 0
    data = json.loads(out)
    assert data["engine"] == engine
    assert data["config"] == "tiny"
    assert data["macs"] == 9 * 20 * 11
    assert data["bit_exact"] is (None if engine == "reference" else True)
    assert data["sparsity"] == "1:4"
    if engine == "cycle":
        assert data["busy"] + sum(data["stalls"].values()) == data["cycles"]
        share = data["useful_macs"] / (data["cycles"] * PRESETS["tiny"].multipliers)
        assert data["utilisation"] == pytest.approx(share)
        assert data["bytes_read"] > 9 * 20
        assert data["bytes_written"] >= 9 * 11
        assert data["simulated_cycles_per_second"] > 0
    else:
        assert data["cycles"] is None


@pytest.fixture
def both_cores(tmp_path):
    """A file with a configuration that has a LUT core and windows."""
    path = tmp_path / "cnn.toml"
    path.write_text(CNN.to_toml())
    return path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--lut-bits", 9), "lut_bits must be 1..8, not 9"),
        (("--policy", "policy.toml"), "l1: the network has no such layer; fc2: the network has no"),
    ],
)
def test_policies_that_do_not_fit_are_refused(
    call, both_cores, tmp_path, monkeypatch, options, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy.toml").write_text('model = "m"\n[layers]\nl1 = {}\nfc = {}\nfc2 = {}\n')
    code, out, err = call("run", "digits-cnn", "--config", both_cores, *options)
    assert (code, out) == (1, "")
    assert message in err


@pytest.mark.parametrize(("core", "channels"), [("dsp", 0), ("lut", 24), ("both", 16)])
@pytest.mark.parametrize("engine", ["reference", "functional"])
def test_layers_on_either_core(call, both_cores, core, channels, engine):
    bits = () if core == "dsp" else ("--weight-bits", 3)
    options = ("--config", both_cores, "--engine", engine, "--core", core, *bits, "--json")
    for layer in (("gemm", 9, 20, 24), ("conv", 6, 7, 16, 24, 3, "--padding", 1, "--stride", 2)):
        code, out, _ = call(*layer, *options)
        assert code == 0
        data = json.loads(out)
        assert (data["core"], data["lut_channels"]) == (core, channels)
        assert data["bit_exact"] is (None if engine == "reference" else True)


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ((9, 8, 16, 24, 3), ("--padding", 1, "--sparsity", "2:4")),
        ((9, 8, 12, 16, 3), ("--dilation", 2, "--stride", 2)),
        ((9, 11, 12, 16, "2,3"), ("--dilation", "1,3", "--stride", "2,1", "--padding", "0,2")),
        ((6, 6, 16, 16, 3), ("--padding", 1, "--groups", 16)),
        ((6, 6, 16, 16, 5), ("--padding", 2, "--groups", 2)),
    ],
)
def test_convolutions_are_exact_on_the_cycle_engine(call, both_cores, sizes, options):
    common = ("--config", both_cores, "--engine", "cycle", "--json")
    code, out, _ = call("conv", *sizes, *options, *common)
    assert code == 0
    data = json.loads(out)
    assert data["bit_exact"]
    assert data["busy"] + sum(data["stalls"].values()) == data["cycles"]
    assert data["lut"]["busy"] + sum(data["lut"]["stalls"].values()) == data["cycles"]


@pytest.mark.slow
def test_digits_keep_their_accuracy(call, tmp_path):
    """8-bit within 0.5 % of fp32, on the whole test set."""
    wide = CNN.replace(name="wide", lanes=16, dsp_columns=16, lut_columns=16, operand_depth=0)
    path = tmp_path / "wide.toml"
    path.write_text(wide.to_toml())
    code, out, _ = call(
        "run", "digits-cnn", "--count", 450, "--engine", "functional", "--config", path, "--json"
    )
    assert code == 0
    data = json.loads(out)
    assert data["bit_exact"]
    assert data["accuracy_fp32"] >= 0.99
    assert data["accuracy"] >= data["accuracy_fp32"] - 0.005


def test_images_run_by_a_policy(call, both_cores, tmp_path):
    logits, policy, program = (tmp_path / name for name in ("l.npy", "policy.toml", "p.twill"))
    options = ("--config", both_cores, "--count", 2, "--seed", 7, "--json")
    code, out, _ = call(
        "run", "digits-cnn", *options, "--engine", "reference", "--lut-bits", 5, "--out", logits,
        "--save-policy", policy, "--save", program,
    )  # fmt: skip
    assert code == 0
    data = json.loads(out)
    assert data["images"] == ["test image 7", "test image 8"]
    assert np.load(logits).argmax(-1).tolist() == data["class"] == data["label"]
    assert min(data["cosine"]) > 0.95
    pattern = r'("basic.conv1" .*)lut_bits = 5'
    edited, count = re.subn(pattern, r"\1lut_bits = 6, lut_share = 0.5", policy.read_text())
    assert count == 1
    policy.write_text(edited)
    again = tmp_path / "again.npy"
    code, out, _ = call(
        "run", "digits-cnn", *options, "--engine", "functional", "--policy", policy, "--out", again
    )
    assert code == 0
    data = json.loads(out)
    assert data["bit_exact"]
    assert data["policy"] == str(policy)
    assert not np.array_equal(np.load(again), np.load(logits))
    layers = {layer["name"]: layer for layer in json.loads(call("inspect", program, "--json")[1])[
        "layers"]}  # fmt: skip
    assert layers["inverted.conv.1.0"]["lut_macs"] == 0  # depthwise
    bits = [layer["lut_work"] / layer["lut_macs"] for layer in layers.values() if layer["lut_macs"]]
    assert bits
    assert all(5 <= n <= 8 for n in bits)
    assert sum(layer["lut_macs"] for layer in layers.values()) > 0


def test_an_image_file_is_classified(call, both_cores, tmp_path):
    digits = load_digits()
    files = []
    for number in (0, 1):
        pixels = ((digits.test[number].numpy() + 1) * 127.5).round().astype(np.uint8)
        files.append(tmp_path / f"{number}.png")
        Picture.fromarray(pixels).save(files[-1])
    options = ("--config", both_cores, "--engine", "reference")
    images = [argument for file in files for argument in ("--image", file)]
    code, out, _ = call("run", "digits-cnn", *images, *options, "--json")
    assert code == 0
    assert json.loads(out)["class"] == digits.test_labels[:2].tolist()
    code, out, _ = call("run", "digits-cnn", "--image", files[0], *options)
    assert "Classes and cosine of the logits" in out
    code, _, err = call("run", "digits-cnn", "--image", files[0], "--seed", 1, *options)
    assert code == 1
    assert "--seed and --count are for images without --image" in err


@pytest.mark.verilator
def test_gemm_in_rtl_with_a_waveform(call, tmp_path):
    wave = tmp_path / "gemm.vcd"
    options = ("--config", "tiny", "--json")
    code, out, _ = call("gemm", 9, 20, 11, *options, "--vcd", wave, "--vcd-window", "10:20")
    assert code == 0
    assert wave.read_text().startswith("$version")
    rtl, cycle = (
        json.loads(out),
        json.loads(call("gemm", 9, 20, 11, *options, "--engine", "cycle")[1]),
    )
    for key in ("cycles", "stalls", "busy", "bytes_read", "bytes_written", "layers"):
        assert rtl[key] == cycle[key]
    assert rtl["bit_exact"]


@pytest.mark.verilator
@pytest.mark.parametrize(
    "arguments",
    [
        ("gemm", 9, 40, 24, "--core", "lut", "--weight-bits", 3),
        ("gemm", 17, 64, 48, "--core", "both", "--sparsity", "4:8"),
        ("conv", 9, 8, 16, 24, 3, "--padding", 1, "--core", "both", "--weight-bits", 6),
        ("conv", 6, 7, 12, 16, 3, "--stride", 2, "--core", "lut", "--weight-bits", 5),
    ],
)
def test_layers_in_rtl_are_as_the_cycle_engine_says(call, both_cores, arguments):
    rtl, cycle = (
        json.loads(call(*arguments, "--config", both_cores, "--engine", engine, "--json")[1])
        for engine in ("rtl", "cycle")
    )
    assert rtl["bit_exact"]
    for key in ("cycles", "stalls", "busy", "lut", "bytes_read", "bytes_written", "layers"):
        assert rtl[key] == cycle[key]


@pytest.mark.verilator
def test_digits_in_rtl(call, both_cores):
    options = ("--config", both_cores, "--lut-bits", 6, "--json")
    code, out, _ = call("run", "digits-cnn", "--count", 2, "--engine", "rtl", *options)
    assert code == 0
    data = json.loads(out)
    assert data["bit_exact"]
    assert data["class"] == data["label"]
    cycle = json.loads(call("run", "digits-cnn", "--engine", "cycle", *options)[1])
    assert data["cycles"] == 2 * cycle["cycles"]
    assert data["layers"] == cycle["layers"]


def test_gemm_for_people(call):
    code, out, _ = call("gemm", 8, 16, 8, "--config", "tiny", "--engine", "cycle")
    assert code == 0
    for words in ("useful work", "utilisation", "bit for bit", "bytes read"):
        assert words in out


@pytest.mark.parametrize("inputs", ["in.npz", "unnamed.npz"])
def test_compile_and_simulate(call, mlp, program, tmp_path, inputs):
    folder, _, expected = mlp
    out = tmp_path / "out.npz"
    code, text, _ = call(
        "simulate", program, "--inputs", folder / inputs, "--outputs", out, "--engine", "cycle",
        "--json",
    )  # fmt: skip
    assert code == 0
    assert json.loads(text)["bit_exact"]
    found = np.load(out)["output_0"]
    assert found.shape == expected.shape == (12, 10)
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_inspect_disasm_and_profile(call, program, tmp_path):
    assert "instructions" in call("inspect", program)[1]
    data = json.loads(call("inspect", program, "--json")[1])
    assert data["config"] == "tiny"
    assert data["macs"] == 4 * (24 * 40 + 40 * 10)
    listing = call("disasm", program)[1].splitlines()
    assert listing[-1].split()[1] == "halt"
    instructions = [line for line in listing if not line.startswith("#")]
    assert len(instructions) == Image.load(program).instruction_count
    picture = tmp_path / "report.png"
    assert call("profile", program, "-o", picture)[0] == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((4, 24), "f4")}, "missing arrays: input; unknown arrays: x"),
        ({"input": np.zeros((4, 23), "f4")}, "input: shape must be (4 or a multiple, 24)"),
        ({"input": np.zeros((6, 24), "f4")}, "input: shape must be (4 or a multiple, 24)"),
        ({"input": np.zeros((0, 24), "f4")}, "input: shape must be (4 or a multiple, 24)"),
        ({"input": np.zeros((4, 24))}, "input: type must be float32, not float64"),
        ({"input": np.full((4, 24), np.nan, "f4")}, "input: 96 NaN or infinite"),
    ],
)
def test_wrong_inputs_are_named(call, program, tmp_path, arrays, message):
    path = tmp_path / "in.npz"
    np.savez(path, **arrays)
    code, out, err = call("simulate", program, "--inputs", path, "--engine", "cycle")
    assert code == 1
    assert not out
    assert message in err


def test_inputs_that_are_no_archive_are_named(call, program, tmp_path):
    text, array = tmp_path / "a.txt", tmp_path / "a.npy"
    text.write_text("no arrays")
    np.save(array, np.zeros(3))
    for path, message in ((text, "not an .npz file"), (array, "needs an .npz file")):
        code, _, err = call("simulate", program, "--inputs", path)
        assert code == 1
        assert f"{path}: " in err
        assert message in err


def test_verilog_writes_one_file_and_its_register_map(call, tmp_path):
    code, out, _ = call("verilog", "--config", "tiny", "-o", tmp_path / "rtl")
    assert code == 0
    written = {path.name for path in (tmp_path / "rtl").iterdir()}
    assert "twillcore.v" in written
    assert len(written) > 1
    assert all(name in out for name in written)


def test_doctor_is_content_here(call):
    code, out, _ = call("doctor", "--json")
    data = json.loads(out)
    assert code == 0, data
    assert data["ok"]
    assert {check["what"] for check in data["checks"]} >= {
        "g++",
        "make",
        "torch",
        "weights of MiniLM",
    }


def test_doctor_says_how_to_get_what_is_missing(call, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "file").touch()
    monkeypatch.setenv("TWILLCORE_CACHE", str(tmp_path / "file"))
    code, out, _ = call("doctor", "--json")
    assert code == 1
    missing = {check["what"]: check for check in json.loads(out)["checks"] if not check["found"]}
    assert missing.keys() >= {"g++", "make", "cache is writable"}
    assert "apt install make" in missing["make"]["remedy"]


def test_cache_keeps_one_version_and_no_halves(monkeypatch, tmp_path):
    monkeypatch.setenv("TWILLCORE_CACHE", str(tmp_path))
    made = []

    def make(path):
        made.append(path)
        path.write_text(str(len(made)))

    keys = [content_key("a"), content_key("b")]
    for key in (keys[0], keys[0], keys[1]):
        path = cached_file("thing-1", key, ".txt", make)
    other = cached_file("thing", keys[0], ".txt", make)
    assert path.read_text() == "2"
    assert sorted(tmp_path.iterdir()) == sorted([path, other])

    def fail(path):
        path.write_text("half")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        cached_file("broken", keys[0], ".txt", fail)
    assert sorted(tmp_path.iterdir()) == sorted([path, other])


def test_content_keys_see_where_parts_end():
    assert content_key("ab", "c") != content_key("a", "bc")
