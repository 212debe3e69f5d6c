"""Makes the goldens of the U-Net: small random models of `diffusers` in their published formats, with inputs, outputs, losses and gradients.

Run: python make.py   (writes the .safetensors and .json files and PROVENANCE.toml beside this script)
"""

import importlib.metadata
import platform
import shutil
import tempfile
from pathlib import Path

import diffusers
import safetensors.torch
import torch

HERE = Path(__file__).parent
SEED = 20262
torch.set_num_threads(1)


def spread(model):
    """Random values everywhere, norms and biases too, so that no term of the formula is idle."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
            elif parameter.dim() == 1:
                parameter.copy_(0.2 * torch.randn_like(parameter))
            elif "class_embedding" in name:
                parameter.copy_(0.5 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) / parameter[0].numel() ** 0.5)


def channels_last(x):
    return x.detach().permute(0, 2, 3, 1).contiguous()


def save(name, tensors):
    single = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}
    safetensors.torch.save_file({key: tensor.detach().contiguous() for key, tensor in single.items()}, HERE / name)


def golden(name, model, size, extra, **conditions):
    """The weights are f32, as published; everything computed from them is f64, so that only our own rounding is left to see."""
    spread(model.eval())
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, safe_serialization=True)
        shutil.copyfile(Path(folder) / "config.json", HERE / f"{name}_config.json")
        shutil.copyfile(Path(folder) / "diffusion_pytorch_model.safetensors", HERE / f"{name}_weights.safetensors")
    model.double()
    noisy = torch.randn(2, model.config.in_channels, *size).double().requires_grad_()
    timesteps = torch.tensor([3.0, 851.5])  # one is no whole number: the networks take any
    output = model(noisy, timesteps, **conditions).sample
    target = torch.randn(output.shape).double()
    weights = torch.tensor([0.3, 1.7]).double()
    loss = (((output - target) ** 2).mean((1, 2, 3)) * weights).mean()
    loss.backward()
    results = {
        "noisy": channels_last(noisy), "timesteps": timesteps, "output": channels_last(output), "target": channels_last(target),
        "weights": weights, "loss": loss, "noisy_gradient": channels_last(noisy.grad),
    }
    save(f"{name}_results.safetensors", results | extra)
    save(f"{name}_gradients.safetensors", {key: parameter.grad for key, parameter in model.named_parameters()})


def ddpm():
    """DDPM's own conventions: sines first, shifted frequencies, one head, zeros only below and to the right."""
    torch.manual_seed(SEED)
    model = diffusers.UNet2DModel(
        in_channels=3, out_channels=3, block_out_channels=(4, 8, 8), layers_per_block=1, norm_num_groups=2, norm_eps=1e-6, attention_head_dim=None,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        flip_sin_to_cos=False, freq_shift=1, downsample_padding=0,
    )
    golden("ddpm", model, (16, 12), {})


def classes():
    """OpenAI's conventions: cosines first, time that scales and shifts, heads of a fixed width, classes, learned variance."""
    torch.manual_seed(SEED + 1)
    model = diffusers.UNet2DModel(
        in_channels=3, out_channels=6, block_out_channels=(4, 12), layers_per_block=2, norm_num_groups=2, attn_norm_num_groups=2, attention_head_dim=6,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        flip_sin_to_cos=True, freq_shift=0, downsample_padding=1, resnet_time_scale_shift="scale_shift", num_class_embeds=5,
    )
    classes = torch.tensor([4, 1])
    golden("classes", model, (8, 6), {"class": classes}, class_labels=classes)


def text(name, seed, masked, **options):
    torch.manual_seed(seed)
    model = diffusers.UNet2DConditionModel(
        in_channels=4, out_channels=4, layers_per_block=1, norm_num_groups=2, cross_attention_dim=6, **options,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )
    states = torch.randn(2, 5, 6)
    visible = torch.tensor([[True, True, True, False, False], [True, False, True, True, True]])
    mask = {"encoder_attention_mask": visible} if masked else {}
    golden(name, model, (8, 12), {"states": states, "visible": visible.to(torch.uint8)}, encoder_hidden_states=states.double(), **mask)


def provenance():
    packages = ["diffusers", "torch", "safetensors"]
    lines = [f'seed = {SEED}', f'python = "{platform.python_version()}"', "", "[packages]"]
    lines += [f'{package} = "{importlib.metadata.version(package)}"' for package in packages]
    (HERE / "PROVENANCE.toml").write_text("# Written by make.py.\n" + "\n".join(lines) + "\n")


ddpm()
classes()
# Stable Diffusion 1.x: 1x1 convolutions around the transformer, `attention_head_dim` is the number of heads of every level.
text("sd1", SEED + 2, True, block_out_channels=(8, 8, 8), attention_head_dim=2)
# Stable Diffusion 2.x: linear maps around the transformer, a number of heads for each level. Two blocks, as later models have.
text("sd2", SEED + 3, False, block_out_channels=(8, 8, 8), attention_head_dim=[1, 2, 4], use_linear_projection=True, transformer_layers_per_block=2)
provenance()
