"""Makes the goldens of the KL autoencoder: small random `diffusers.AutoencoderKL` models, with inputs, moments, pictures, losses and gradients.

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
SEED = 20271
torch.set_num_threads(1)


def spread(model):
    """Random values everywhere, norms and biases too, so that no term of the formula is idle."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
            elif parameter.dim() == 1:
                parameter.copy_(0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) / parameter[0].numel() ** 0.5)


def channels_last(x):
    return x.detach().permute(0, 2, 3, 1).contiguous()


def save(name, tensors):
    safetensors.torch.save_file({key: tensor.detach().contiguous() for key, tensor in tensors.items()}, HERE / name)


def save_model(model, name):
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, safe_serialization=True)
        shutil.copy(Path(folder) / "config.json", HERE / f"{name}_config.json")
        shutil.copy(Path(folder) / "diffusion_pytorch_model.safetensors", HERE / f"{name}_weights.safetensors")


def results(model, x, noise):
    posterior = model.encode(x).latent_dist
    latents = posterior.mean + posterior.std * noise
    picture = model.decode(latents).sample
    kl = posterior.kl().mean()
    # Summed as latent-diffusion does, but with a weight that lets the divergence be felt among the gradients.
    total = (picture - x).abs().sum() / len(x) + 0.5 * kl
    return posterior, latents, picture, kl, total


def model(name, seed, **options):
    torch.manual_seed(seed)
    levels = len(options["block_out_channels"])
    network = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels, norm_num_groups=2, sample_size=16, **options,
    ).eval()
    spread(network)
    with torch.no_grad():
        # One latent with log variances around the least, so that the clamp and its gradient count.
        final = network.quant_conv if network.quant_conv is not None else network.encoder.conv_out
        final.bias[-1] = -30
    x = torch.rand(2, 3, 16, 24) * 2 - 1
    noise = torch.randn(network.encode(x).latent_dist.mean.shape)
    posterior, latents, picture, kl, total = results(network, x, noise)
    total.backward()
    assert (posterior.logvar[:, -1] == -30).any() and (posterior.logvar[:, -1] > -30).any()
    save_model(network, name)
    save(f"{name}_results.safetensors", {
        "x": channels_last(x),
        "noise": channels_last(noise),
        "mean": channels_last(posterior.mean),
        "log_variance": channels_last(posterior.logvar),
        "latents": channels_last(latents),
        "picture": channels_last(picture),
        "kl": kl.reshape(1),
        "total": total.reshape(1),
    })
    save(f"{name}_gradients.safetensors", {key: parameter.grad for key, parameter in network.named_parameters()})


def provenance():
    packages = ["diffusers", "torch", "safetensors"]
    lines = [f"seed = {SEED}", f'python = "{platform.python_version()}"', "", "[packages]"]
    lines += [f'{package} = "{importlib.metadata.version(package)}"' for package in packages]
    (HERE / "PROVENANCE.toml").write_text("# Written by make.py.\n" + "\n".join(lines) + "\n")


model("stable_diffusion", SEED, block_out_channels=(4, 8, 8), layers_per_block=2, latent_channels=4, scaling_factor=0.18215)
model(
    "without_projections", SEED + 1, block_out_channels=(4, 8), layers_per_block=1, latent_channels=3, scaling_factor=1.5305, shift_factor=0.0609,
    use_quant_conv=False, use_post_quant_conv=False,
)
provenance()
