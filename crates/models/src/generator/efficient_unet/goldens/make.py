"""Makes the goldens of the Efficient U-Net: an implementation in PyTorch from the paper (2205.11487, appendices B and D.3), apart from the one under test.

No weights and no layout are published, and imagen-pytorch builds another network (see mod.rs); so the weights are random and written under our names.

Run: python make.py   (writes the .safetensors files and PROVENANCE.toml beside this script)
"""

import importlib.metadata
import math
import platform
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

HERE = Path(__file__).parent
SEED = 20263
GROUPS, HEAD, TIME, SINUSOIDS, TEXT = 2, 4, 12, 8, 6
torch.set_num_threads(1)


def sinusoids(x):
    half = SINUSOIDS // 2
    angles = x[:, None] * torch.exp(-math.log(10000) * torch.arange(half, dtype=x.dtype) / half)
    return torch.cat([angles.cos(), angles.sin()], 1)


class Embedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.input, self.output = nn.Linear(SINUSOIDS, TIME), nn.Linear(TIME, TIME)

    def forward(self, x):
        return self.output(F.silu(self.input(sinusoids(x))))


class Pooling(nn.Module):
    def __init__(self):
        super().__init__()
        self.score, self.norm, self.input, self.output = nn.Linear(TEXT, 1), nn.LayerNorm(TEXT), nn.Linear(TEXT, TIME), nn.Linear(TIME, TIME)

    def forward(self, states, visible):
        rows = []
        for state, seen in zip(states, visible):  # one row at a time, padding cut off
            state = state[seen]
            weights = self.score(state).softmax(0)
            rows.append((weights * state).sum(0))
        return self.output(F.silu(self.input(self.norm(torch.stack(rows)))))


class Block(nn.Module):
    """Figure A.27, with the time as scale and shift (`use_scale_shift_norm`)."""

    def __init__(self, inputs, channels):
        super().__init__()
        self.norm_1, self.conv_1 = nn.GroupNorm(GROUPS, inputs), nn.Conv2d(inputs, channels, 3, padding=1)
        self.time = nn.Linear(TIME, 2 * channels)
        self.norm_2, self.conv_2 = nn.GroupNorm(GROUPS, channels), nn.Conv2d(channels, channels, 3, padding=1)
        if inputs != channels:
            self.shortcut = nn.Conv2d(inputs, channels, 1)

    def forward(self, x, time):
        h = self.conv_1(F.silu(self.norm_1(x)))
        scale, shift = self.time(F.silu(time))[:, :, None, None].chunk(2, 1)
        h = self.conv_2(F.silu(self.norm_2(h) * (1 + scale) + shift))
        return h + (self.shortcut(x) if hasattr(self, "shortcut") else x)


class Attention(nn.Module):
    def __init__(self, channels, own, text):
        super().__init__()
        self.norm, self.query, self.output = nn.GroupNorm(GROUPS, channels), nn.Linear(channels, channels), nn.Linear(channels, channels)
        if own:
            self.key, self.value = nn.Linear(channels, channels), nn.Linear(channels, channels)
        if text:
            self.text_norm, self.text_key, self.text_value = nn.LayerNorm(TEXT), nn.Linear(TEXT, channels), nn.Linear(TEXT, channels)
        self.null_key, self.null_value = nn.Parameter(torch.zeros(1, channels)), nn.Parameter(torch.zeros(1, channels))

    def forward(self, x, states, visible):
        rows = []
        for picture, state, seen in zip(x, states, visible):  # one row and one head at a time, padding cut off
            pixels = self.norm(picture[None])[0].flatten(1).T
            keys, values = [self.null_key], [self.null_value]
            if hasattr(self, "text_key"):
                state = self.text_norm(state[seen])
                keys.append(self.text_key(state))
                values.append(self.text_value(state))
            if hasattr(self, "key"):
                keys.append(self.key(pixels))
                values.append(self.value(pixels))
            query, keys, values = self.query(pixels), torch.cat(keys), torch.cat(values)
            heads = []
            for q, k, v in zip(query.split(HEAD, 1), keys.split(HEAD, 1), values.split(HEAD, 1)):
                heads.append((q @ k.T / HEAD**0.5).softmax(1) @ v)
            rows.append(picture + self.output(torch.cat(heads, 1)).T.reshape(picture.shape))
        return torch.stack(rows)


class Down(nn.Module):
    """Figure A.29."""

    def __init__(self, inputs, level, every_block):
        super().__init__()
        channels, count, smaller, own, text = level
        if smaller:
            self.downsample = nn.Conv2d(inputs, channels, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList([Block(inputs if i == 0 and not smaller else channels, channels) for i in range(count)])
        self.attentions = nn.ModuleList([Attention(channels, own, text) for _ in range((count if every_block else 1) if own or text else 0)])
        self.every_block = every_block


class Up(nn.Module):
    """Figure A.28."""

    def __init__(self, outputs, level, every_block):
        super().__init__()
        channels, count, self.larger, own, text = level
        self.blocks = nn.ModuleList([Block(2 * channels if i == 0 or every_block else channels, channels) for i in range(count)])
        self.attentions = nn.ModuleList([Attention(channels, own, text) for _ in range((count if every_block else 1) if own or text else 0)])
        self.conv = nn.Conv2d(channels, outputs, 3, padding=1)
        self.every_block = every_block


class Middle(nn.Module):
    def __init__(self, channels, own, text):
        super().__init__()
        self.block_1, self.attention, self.block_2 = Block(channels, channels), Attention(channels, own, text), Block(channels, channels)


class Network(nn.Module):
    """Levels are (channels, blocks, whether it shrinks the picture, attention to itself, attention to text)."""

    def __init__(self, base, levels, low_resolution, middle, every_block):
        super().__init__()
        self.conv_in = nn.Conv2d(6 if low_resolution else 3, base, 3, padding=1)
        self.time_embedding = Embedding()
        if low_resolution:
            self.noise_embedding = Embedding()
        self.text_pooling = Pooling()
        inputs = [base] + [level[0] for level in levels[:-1]]
        self.down = nn.ModuleList([Down(channels, level, every_block) for channels, level in zip(inputs, levels)])
        if middle:
            self.middle = Middle(levels[-1][0], *levels[-1][3:])
        self.up = nn.ModuleList([Up(channels, level, every_block) for channels, level in reversed(list(zip(inputs, levels)))])
        self.norm_out, self.conv_out = nn.GroupNorm(GROUPS, base), nn.Conv2d(base, 3, 3, padding=1)

    def forward(self, x, times, states, visible, small=None, noise_level=None):
        time = self.time_embedding(times) + self.text_pooling(states, visible)
        if small is not None:
            time, x = time + self.noise_embedding(noise_level), torch.cat([x, small], 1)
        h, kept = self.conv_in(x), []
        for level in self.down:
            if hasattr(level, "downsample"):
                h = level.downsample(h)
            last = len(level.blocks) - 1
            for i, block in enumerate(level.blocks):
                h = block(h, time)
                if len(level.attentions) and (level.every_block or i == last):
                    h = level.attentions[i if level.every_block else 0](h, states, visible)
                if level.every_block or i == last:
                    kept.append(h)
        if hasattr(self, "middle"):
            h = self.middle.block_2(self.middle.attention(self.middle.block_1(h, time), states, visible), time)
        for level in self.up:
            last = len(level.blocks) - 1
            for i, block in enumerate(level.blocks):
                if level.every_block or i == 0:
                    h = torch.cat([h, kept.pop() / math.sqrt(2)], 1)
                h = block(h, time)
                if len(level.attentions) and (level.every_block or i == last):
                    h = level.attentions[i if level.every_block else 0](h, states, visible)
            if level.larger:
                h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
            h = level.conv(h)
        return self.conv_out(F.silu(self.norm_out(h)))


def spread(model):
    """Random values everywhere, norms and biases too, so that no term of the formula is idle."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
            elif parameter.dim() == 1:
                parameter.copy_(0.2 * torch.randn_like(parameter))
            elif "null" in name:
                parameter.copy_(0.5 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) / parameter[0].numel() ** 0.5)


def ours(name, tensor):
    """Our layout: [kernel, kernel, input, output] and [input, output]; a norm's weight is its scale."""
    if "norm" in name and name.endswith("weight"):
        return name.removesuffix("weight") + "scale", tensor
    if tensor.dim() == 4:
        tensor = tensor.permute(2, 3, 1, 0)
        return name, tensor.squeeze((0, 1)) if tensor.shape[0] == 1 else tensor
    return name, tensor.T if tensor.dim() == 2 and "null" not in name else tensor


def save(name, tensors):
    single = {key: tensor.detach().float() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}
    safetensors.torch.save_file({key: tensor.contiguous() for key, tensor in single.items()}, HERE / name)


def channels_last(x):
    return x.permute(0, 2, 3, 1)


def golden(name, seed, size, **options):
    torch.manual_seed(seed)
    model = Network(**options)
    spread(model)
    save(f"{name}_weights.safetensors", dict(ours(key, value) for key, value in model.named_parameters()))
    model.double()
    noisy, target, small = (torch.randn(2, 3, *size).double() for _ in range(3))
    noisy.requires_grad_()
    times, weights = torch.tensor([3.0, 851.5]).double(), torch.tensor([0.3, 1.7]).double()
    states = torch.randn(2, 5, TEXT).double()
    visible = torch.tensor([[True, True, True, False, False], [True, False, True, True, True]])
    more = {"small": small, "noise_level": torch.tensor([100.0, 20.5]).double()} if options["low_resolution"] else {}
    output = model(noisy, times, states, visible, **more)
    loss = (((output - target) ** 2).mean((1, 2, 3)) * weights).mean()
    loss.backward()
    if more:
        more["small"] = channels_last(small)
    save(f"{name}_results.safetensors", more | {
        "noisy": channels_last(noisy), "timesteps": times, "states": states, "visible": visible.to(torch.uint8), "output": channels_last(output),
        "target": channels_last(target), "weights": weights, "loss": loss, "noisy_gradient": channels_last(noisy.grad),
    })
    save(f"{name}_gradients.safetensors", dict(ours(key, value.grad) for key, value in model.named_parameters()))


def provenance():
    packages = ["torch", "safetensors"]
    lines = [f'seed = {SEED}', f'python = "{platform.python_version()}"', "", "[packages]"]
    lines += [f'{package} = "{importlib.metadata.version(package)}"' for package in packages]
    (HERE / "PROVENANCE.toml").write_text("# Written by make.py.\n" + "\n".join(lines) + "\n")


# As the 64x64 model: results kept and attention after every block, a middle, the first level at the picture's own size.
golden("base", SEED, (8, 12), base=4, levels=[(4, 1, False, False, False), (8, 2, True, True, True)], low_resolution=False, middle=True, every_block=True)
# As the super-resolution models: once a level, attention to text alone, then to both; a smaller picture.
levels = [(4, 1, True, False, False), (8, 2, True, False, True), (8, 2, False, True, True)]
golden("enlarge", SEED + 1, (16, 8), base=4, levels=levels, low_resolution=True, middle=False, every_block=False)
provenance()
