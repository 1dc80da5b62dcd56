"""Random networks for images of all that the front end knows, against reference and torch."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from twillcore.compiler.front import run_front
from twillcore.compiler.host import chip_arguments
from twillcore.compiler.pipeline import compile_graph
from twillcore.compiler.shares import NO_SHARES, LutShare, Shares
from twillcore.config import PRESETS
from twillcore.sim.functional import FunctionalEngine
from twillcore.sim.reference import run_graph

TINY = PRESETS["tiny"].replace(tap_depth=128, activation_depth=2048, weight_depth=2048)
CONFIGS = {
    "tiny": TINY,
    "both cores": TINY.replace(lut_columns=8, lut_weight_depth=1024),
    "14 lanes, small": TINY.replace(
        lanes=14, dsp_columns=24, lut_columns=16, lut_weight_depth=2048, operand_depth=0,
        activation_depth=256,
    ),
    "6 lanes, DSP core only": TINY.replace(
        lanes=6, wide_depth=0, lane_depth=0, norm_depth=0, operand_depth=0, activation_depth=600
    ),
}  # fmt: skip


class Random(nn.Module):
    """Layers that read earlier maps; ``maps`` are channels and size of each."""

    def __init__(self, seed):
        super().__init__()
        self.rng = np.random.default_rng(seed)
        self.layers, self.steps = nn.ModuleList(), []
        self.maps = [(self.pick(1, 13), (self.pick(6, 21), self.pick(6, 21)))]
        self.add(nn.Conv2d(self.maps[0][0], self.pick(3, 19), 1), [0])
        for _ in range(self.pick(2, 6)):
            self.step(self.pick(1, len(self.maps) - 1))
        last = len(self.maps) - 1
        self.add(nn.Conv2d(self.maps[last][0], 5, 1), [last])

    def pick(self, low, high):
        return int(self.rng.integers(low, high + 1))

    def pair(self, low, high):
        return self.pick(low, high), self.pick(low, high)

    def add(self, layer, sources):
        """Append a layer, or "cat" or "add", unless the maps are too small for it."""
        shapes = [torch.zeros(1, self.maps[i][0], *self.maps[i][1]) for i in sources]
        try:
            result = apply(layer.eval() if isinstance(layer, nn.Module) else layer, shapes)
        except RuntimeError:
            return
        if isinstance(layer, nn.Module):
            self.layers.append(layer)
            layer = len(self.layers) - 1
        self.steps.append((layer, sources))
        self.maps.append((result.shape[1], tuple(result.shape[2:])))

    def step(self, i):
        channels, size = self.maps[i]
        n = self.pick(1, 19)
        layers = {
            "convolution": lambda: nn.Conv2d(channels, n, self.pair(1, 3), self.pair(1, 4), 1),
            "dense": lambda: nn.Conv2d(channels, n, self.pair(1, 3), padding=self.pick(0, 1)),
            "dilated": lambda: nn.Conv2d(
                channels, n, self.pair(2, 3), self.pair(1, 2), self.pair(0, 2), self.pair(1, 4)
            ),
            "depthwise": lambda: nn.Conv2d(channels, channels, 3, self.pair(1, 3), groups=channels),
            "max": lambda: nn.MaxPool2d(self.pair(1, 3), self.pair(1, 3)),
            "dilated max": lambda: nn.MaxPool2d(
                self.pair(1, 3), self.pick(1, 2), 0, self.pair(1, 3)
            ),
            "average": lambda: nn.AvgPool2d(2, self.pick(1, 3)),
            "adaptive": lambda: nn.AdaptiveMaxPool2d(
                int(self.rng.choice([m for m in (1, 2, 3) if not (size[0] % m or size[1] % m)]))
            ),
            "pixels": lambda: nn.ZeroPad2d((*self.pair(0, 2), *self.pair(0, 2))),
            "channels": lambda: nn.ConstantPad3d((0, 0, 0, 0, *self.pair(0, 4)), 0.0),
            "function": lambda: [nn.ReLU(), nn.SiLU(), nn.BatchNorm2d(channels)][self.pick(0, 2)],
        }
        kind = str(self.rng.choice([*layers, "cat", "add"]))
        if kind in layers:
            self.add(layers[kind](), [i])
            return
        alike = [j for j, m in enumerate(self.maps) if m[1] == size]
        alike = [j for j in alike if kind == "cat" or self.maps[j][0] == channels]
        others = [
            int(self.rng.choice(alike)) for _ in range(1 if kind == "add" else self.pick(1, 2))
        ]
        self.add(kind, [i, *others])

    def forward(self, x):
        values = [x]
        for layer, sources in self.steps:
            what = self.layers[layer] if isinstance(layer, int) else layer
            values.append(apply(what, [values[i] for i in sources]))
        return values[-1]


def apply(layer, values):
    if layer == "cat":
        return torch.cat(values, 1)
    return values[0] + values[1] if layer == "add" else layer(values[0])


@pytest.mark.parametrize("seed", range(24))
def test_random_networks(seed):
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    config = list(CONFIGS.values())[seed % len(CONFIGS)]
    module = Random(seed).eval()
    channels, size = module.maps[0]
    samples = [(torch.randn(1 + seed % 2, channels, *size),) for _ in range(6)]
    shares = Shares({}, LutShare(4)) if config.lut_columns else NO_SHARES
    front = run_front(module, samples[0], config, samples, shares)
    results = front.programs.prefix(*samples[0])
    integers, _ = chip_arguments(front.interface, results)
    image = compile_graph(front.graph)
    outputs = FunctionalEngine(garbage=seed, strict=True).run(image, integers).outputs
    for name, expected in run_graph(front.graph, integers).items():
        np.testing.assert_array_equal(outputs[name], expected, err_msg=f"{module.steps}")
    chip = [
        torch.from_numpy(np.ascontiguousarray(t.dequantise(outputs[t.name])))
        for t in front.interface.chip_outputs
    ]
    with torch.no_grad():
        wanted = module(*samples[0])
        got = front.programs.suffix(*chip, *results[len(front.programs.sources) :])[0]
    assert wanted.shape == got.shape
    assert functional.cosine_similarity(wanted.flatten(), got.flatten(), 0) > 0.97, module.steps
