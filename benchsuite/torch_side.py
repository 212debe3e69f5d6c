"""PyTorch's side of `cargo xtask bench`: one row in a process of its own, driven line by line, with the protocol of `smalti bench --serve`.

    python torch_side.py ROW MODE THREADS

MODE: f32 or bf16 (weights and activations), autocast (bf16 by torch.autocast); rows with feature maps append -nchw or -nhwc (channels last).
Prints one JSON line when ready (built, run once to warm up), one for each line read, and one at the end of the input.
Rows, shapes and networks are those of crates/cli/src/commands/bench/row.rs.
"""

import contextlib
import json
import math
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

ROW, MODE, THREADS = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(THREADS)
torch.manual_seed(0)
NUMBERS, _, LAYOUT = MODE.partition("-")
DTYPE = torch.bfloat16 if NUMBERS == "bf16" else torch.float32
FORMAT = torch.channels_last if LAYOUT == "nhwc" else torch.contiguous_format


def arithmetic():
    return torch.autocast("cpu", torch.bfloat16) if NUMBERS == "autocast" else contextlib.nullcontext()


def feature_map(batch, channels, size):
    return torch.randn(batch, channels, size, size).to(DTYPE).to(memory_format=FORMAT)


def placed(module):
    return module.to(DTYPE).to(memory_format=FORMAT)


class ResidualBlock(nn.Module):
    def __init__(self, inputs, outputs, time_channels=None, groups=32):
        super().__init__()
        self.norm_1, self.conv_1 = nn.GroupNorm(groups, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm_2, self.conv_2 = nn.GroupNorm(groups, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.time = nn.Linear(time_channels, outputs) if time_channels else None
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x, time=None):
        h = self.conv_1(F.silu(self.norm_1(x)))
        if self.time is not None:
            h = h + self.time(time)[:, :, None, None]
        return self.shortcut(x) + self.conv_2(F.silu(self.norm_2(h)))


class MapAttention(nn.Module):
    """One head over all places of a feature map."""

    def __init__(self, channels, groups=32):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.query, self.key, self.value, self.output = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x):
        batch, channels, height, width = x.shape
        h = self.norm(x)
        tokens = (layer(h).flatten(2).transpose(1, 2).unsqueeze(1) for layer in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(*tokens)
        return x + self.output(mixed.squeeze(1).transpose(1, 2).reshape(batch, channels, height, width))


class Decoder(nn.Module):
    """taming-transformers' f16 decoder behind its post_quant_conv; other sizes for the start-up row."""

    def __init__(self, base=128, multipliers=(1, 1, 2, 2, 4), blocks=2, latents=256, codes=256, attention_levels=(4,), groups=32):
        super().__init__()
        last = len(multipliers) - 1
        channels = base * multipliers[last]
        layers = [nn.Conv2d(codes, latents, 1), nn.Conv2d(latents, channels, 3, padding=1)]
        layers += [ResidualBlock(channels, channels, groups=groups), MapAttention(channels, groups), ResidualBlock(channels, channels, groups=groups)]
        for level in range(last, -1, -1):
            for _ in range(blocks + 1):
                layers.append(ResidualBlock(channels, base * multipliers[level], groups=groups))
                channels = base * multipliers[level]
                if level in attention_levels:
                    layers.append(MapAttention(channels, groups))
            if level > 0:
                layers += [nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(channels, channels, 3, padding=1)]
        self.layers = nn.Sequential(*layers, nn.GroupNorm(groups, channels), nn.SiLU(), nn.Conv2d(channels, 3, 3, padding=1))

    def forward(self, latents):
        return self.layers(latents)


class Stage(nn.Module):
    def __init__(self, inputs, outputs, time_channels, attends):
        super().__init__()
        self.block = ResidualBlock(inputs, outputs, time_channels)
        self.attention = MapAttention(outputs) if attends else nn.Identity()

    def forward(self, x, time):
        return self.attention(self.block(x, time))


class UNet(nn.Module):
    def __init__(self, base=64, multipliers=(1, 2, 4), blocks=2):
        super().__init__()
        self.base, time_channels, last = base, 4 * base, len(multipliers) - 1
        self.time = nn.Sequential(nn.Linear(base, time_channels), nn.SiLU(), nn.Linear(time_channels, time_channels))
        self.conv_in = nn.Conv2d(3, base, 3, padding=1)
        channels, skips = base, [base]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                self.down.append(Stage(channels, base * multiplier, time_channels, level == last))
                channels = base * multiplier
                skips.append(channels)
            if level < last:
                self.down.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
                skips.append(channels)
        self.middle = nn.ModuleList([Stage(channels, channels, time_channels, True), ResidualBlock(channels, channels, time_channels)])
        for level in range(last, -1, -1):
            for _ in range(blocks + 1):
                self.up.append(Stage(channels + skips.pop(), base * multipliers[level], time_channels, level == last))
                channels = base * multipliers[level]
            if level > 0:
                self.up.append(nn.Conv2d(channels, channels, 3, padding=1))
        self.norm_out, self.conv_out = nn.GroupNorm(32, channels), nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, x, timesteps):
        half = self.base // 2
        frequencies = torch.exp(-math.log(10000.0) * torch.arange(half) / (half - 1))
        angles = timesteps[:, None].float() * frequencies[None]
        time = F.silu(self.time(torch.cat([angles.sin(), angles.cos()], 1).to(self.conv_in.weight.dtype)))
        h = self.conv_in(x)
        skips = [h]
        for layer in self.down:
            h = layer(h, time) if isinstance(layer, Stage) else layer(h)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, time)
        for layer in self.up:
            if isinstance(layer, Stage):
                h = layer(torch.cat([h, skips.pop()], 1), time)
            else:
                h = layer(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(h)))


class Block(nn.Module):
    def __init__(self, channels, heads):
        super().__init__()
        self.heads = heads
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.query_key_value, self.output = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.expand, self.contract = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)

    def forward(self, x, cache, position):
        batch, _, channels = x.shape
        split = self.query_key_value(self.attention_norm(x)).reshape(batch, 1, 3, self.heads, channels // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        keys, values = cache
        keys[:, :, position : position + 1], values[:, :, position : position + 1] = key, value
        mixed = F.scaled_dot_product_attention(query, keys[:, :, : position + 1], values[:, :, : position + 1])
        x = x + self.output(mixed.transpose(1, 2).reshape(batch, 1, channels))
        return x + self.contract(F.gelu(self.expand(self.feed_forward_norm(x))))


class Transformer(nn.Module):
    """Decoder-only, 12 blocks of 768 channels, 16384 image tokens."""

    def __init__(self, channels=768, blocks=12, heads=12, vocabulary=16384, tokens=256):
        super().__init__()
        self.heads, self.tokens = heads, tokens
        self.table, self.positions = nn.Embedding(vocabulary, channels), nn.Embedding(tokens, channels)
        self.blocks = nn.ModuleList([Block(channels, heads) for _ in range(blocks)])
        self.norm, self.head = nn.LayerNorm(channels), nn.Linear(channels, vocabulary, bias=False)

    def decode(self, batch):
        shape = (batch, self.heads, self.tokens, self.table.weight.shape[1] // self.heads)
        dtype = torch.float32 if NUMBERS == "f32" else torch.bfloat16
        caches = [(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)) for _ in self.blocks]
        tokens = torch.zeros(batch, dtype=torch.long)
        for position in range(self.tokens):
            x = (self.table(tokens) + self.positions.weight[position])[:, None]
            for block, cache in zip(self.blocks, caches):
                x = block(x, cache, position)
            tokens = self.head(self.norm(x))[:, 0].argmax(-1)
        return tokens


def latent_diffusion():
    """diffusers' own networks and scheduler: 20 guided DDIM steps and the decoder, as StableDiffusionPipeline does them."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    unet = placed(UNet2DConditionModel(sample_size=32, block_out_channels=(96, 192, 384, 384), cross_attention_dim=768, attention_head_dim=8).eval())
    decoder_blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    autoencoder = placed(AutoencoderKL(block_out_channels=(64, 128, 256, 256), layers_per_block=2, latent_channels=4, **decoder_blocks).eval())
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    text, noise = torch.randn(2, 77, 768).to(DTYPE), feature_map(1, 4, 32)

    def picture():
        scheduler.set_timesteps(20)
        latents = noise
        for timestep in scheduler.timesteps:
            unconditional, conditional = unet(torch.cat([latents] * 2), timestep, encoder_hidden_states=text).sample.chunk(2)
            latents = scheduler.step(unconditional + 7.5 * (conditional - unconditional), timestep, latents).prev_sample
        return autoencoder.decode(latents.to(DTYPE) / 0.18215).sample

    return picture


def forward_only(call):
    def run():
        with torch.no_grad(), arithmetic():
            return call()

    return run


def prepare(row):
    """-> (a function to time, by what its time is divided)"""
    parts = row.split("_")
    if row.startswith("matmul_"):
        rows, depth, columns = map(int, parts[1].split("x"))
        a, b = torch.randn(rows, depth).to(DTYPE), torch.randn(depth, columns).to(DTYPE)
        return forward_only(lambda: a @ b), 1
    if row.startswith("conv_"):
        batch, size, _, channels = map(int, parts[1].split("x"))
        conv, x = placed(nn.Conv2d(channels, channels, 3, padding=1)), feature_map(batch, channels, size)
        if parts[-1] == "forward":
            return forward_only(lambda: conv(x)), 1
        dy = feature_map(batch, channels, size)
        x.requires_grad_(True)

        def forward_backward():
            with arithmetic():
                y = conv(x)
            y.backward(dy.to(y.dtype))
            x.grad = None
            conv.zero_grad(set_to_none=True)

        return forward_backward, 1
    if row.startswith("group_norm_silu_"):
        norm, x = placed(nn.GroupNorm(32, 128)), feature_map(1, 128, 256)
        return forward_only(lambda: F.silu(norm(x))), 1
    if row.startswith("attention_"):
        query, key, value = (torch.randn(1, 8, int(parts[1]), 64).to(DTYPE) for _ in range(3))
        return forward_only(lambda: F.scaled_dot_product_attention(query, key, value)), 1
    if parts[0] == "A":
        batch = int(parts[2]) if parts[1:2] == ["batch"] else 1
        size = int(parts[2]) if parts[1:2] == ["size"] else 256
        decoder, latents = placed(Decoder().eval()), feature_map(batch, 256, size // 16)
        return forward_only(lambda: decoder(latents)), batch
    if row == "B":
        network, x, noise = placed(UNet()), feature_map(16, 3, 32), feature_map(16, 3, 32)
        timesteps = torch.randint(0, 1000, (16,))
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

        def step():
            with arithmetic():
                loss = F.mse_loss(network(x, timesteps).float(), noise.float())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step, 1
    if parts[0] == "C":
        network = Transformer().eval().to(DTYPE)
        return forward_only(lambda: network.decode(int(parts[2]))), network.tokens
    if row == "D":
        return forward_only(latent_diffusion()), 1
    raise SystemExit(f"unknown row `{row}`")


def peak_mb():
    with contextlib.suppress(OSError):
        for line in open("/proc/self/status"):
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return None


def main():
    run, units = prepare(ROW)
    run()
    print(json.dumps({"row": ROW, "mode": MODE, "torch": torch.__version__, "threads": torch.get_num_threads()}), flush=True)
    for _ in sys.stdin:
        start, cpu_start = time.perf_counter(), time.process_time()
        run()
        ms, cpu_ms = (time.perf_counter() - start) * 1e3, (time.process_time() - cpu_start) * 1e3
        print(json.dumps({"ms": ms / units, "cpu_ms": cpu_ms / units}), flush=True)
    print(json.dumps({"peak_mb": peak_mb()}), flush=True)


if __name__ == "__main__":
    main()
