"""Makes the goldens of the noisy classifier: diffusers' own blocks of a U-Net's way down and middle, with the pooling of CLIP's `AttentionPool2d` written out.

Run: python make.py   (writes the .safetensors files and PROVENANCE.toml beside this script)
"""

import importlib.metadata
import platform
from pathlib import Path

import diffusers
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

HERE = Path(__file__).parent
SEED = 20264
torch.set_num_threads(1)


class Pooling(nn.Module):
    def __init__(self, places, channels):
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(places + 1, channels))
        self.query, self.key, self.value, self.output = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, places):
        tokens = torch.cat([places.mean(1, keepdim=True), places], 1) + self.positions
        channels = tokens.shape[2]
        weights = torch.cat([self.query.weight, self.key.weight, self.value.weight])
        biases = torch.cat([self.query.bias, self.key.bias, self.value.bias])
        tokens = tokens.transpose(0, 1)
        pooled, _ = F.multi_head_attention_forward(
            tokens, tokens, tokens, channels, 2, weights, biases, None, None, False, 0.0, self.output.weight, self.output.bias, need_weights=False,
        )
        return pooled[0]


class Classifier(nn.Module):
    """The way down and the middle are those of a `UNet2DModel`, run block by block."""

    def __init__(self, pooling):
        super().__init__()
        self.unet = diffusers.UNet2DModel(
            in_channels=3, out_channels=3, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, attn_norm_num_groups=2, attention_head_dim=4,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"), resnet_time_scale_shift="scale_shift",
        )
        del self.unet.up_blocks, self.unet.conv_norm_out, self.unet.conv_out
        self.norm_out = nn.GroupNorm(2, 8)
        if pooling:
            self.pooling = Pooling(16, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x, times):
        time = self.unet.time_embedding(self.unet.time_proj(times).to(x.dtype))
        h = self.unet.conv_in(x)
        for block in self.unet.down_blocks:
            h, _ = block(hidden_states=h, temb=time)
        h = F.silu(self.norm_out(self.unet.mid_block(h, time))).flatten(2).transpose(1, 2)
        return self.head(self.pooling(h) if hasattr(self, "pooling") else h.mean(1))


def spread(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
            elif parameter.dim() == 1:
                parameter.copy_(0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) / parameter[0].numel() ** 0.5)


def save(name, tensors):
    single = {key: tensor.detach().float() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}
    safetensors.torch.save_file({key: tensor.contiguous() for key, tensor in single.items()}, HERE / name)


def golden(name, seed, pooling):
    torch.manual_seed(seed)
    model = Classifier(pooling)
    spread(model)
    # The U-Net's part under diffusers' names, the rest under ours with PyTorch's layout.
    plain = lambda values: {key.removeprefix("unet."): value for key, value in values}
    save(f"{name}_weights.safetensors", plain(model.named_parameters()))
    model.double()
    noisy = torch.randn(2, 3, 8, 8).double().requires_grad_()
    times, classes = torch.tensor([3.0, 851.5]), torch.tensor([4, 1])
    logits = model(noisy, times)
    of_probability = torch.autograd.grad(logits.log_softmax(1)[[0, 1], classes].sum(), noisy, retain_graph=True)[0]
    loss = F.cross_entropy(logits, classes)
    loss.backward()
    save(f"{name}_results.safetensors", {
        "noisy": noisy.permute(0, 2, 3, 1), "timesteps": times, "class": classes, "logits": logits, "loss": loss,
        "log_probability_gradient": of_probability.permute(0, 2, 3, 1),
    })
    save(f"{name}_gradients.safetensors", plain((key, value.grad) for key, value in model.named_parameters()))


def provenance():
    packages = ["diffusers", "torch", "safetensors"]
    lines = [f'seed = {SEED}', f'python = "{platform.python_version()}"', "", "[packages]"]
    lines += [f'{package} = "{importlib.metadata.version(package)}"' for package in packages]
    (HERE / "PROVENANCE.toml").write_text("# Written by make.py.\n" + "\n".join(lines) + "\n")


golden("mean", SEED, False)
golden("attention", SEED + 1, True)
provenance()
