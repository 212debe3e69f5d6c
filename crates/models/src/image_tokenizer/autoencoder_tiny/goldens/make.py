"""Makes the goldens of the tiny autoencoder: a small random `diffusers.AutoencoderTiny` with inputs, latents, pictures, loss and gradients; and, once, from a
folder with the published TAEF2 weights and a picture with its reconstruction, `assets/taef2` (the weights, unchanged, as safetensors) and `taef2.safetensors`.

Run: python make.py [TAEF2_FOLDER]
"""

import importlib.metadata
import platform
import shutil
import sys
import tempfile
from pathlib import Path

import diffusers
import numpy
import safetensors.torch
import torch
from PIL import Image

HERE = Path(__file__).parent
ASSETS = HERE / "../../../../../../assets/taef2"
SEED = 20281
torch.set_num_threads(1)


def channels_last(x):
    return x.detach().permute(0, 2, 3, 1).contiguous()


def save(path, tensors):
    safetensors.torch.save_file({key: tensor.detach().contiguous() for key, tensor in tensors.items()}, path)


def diffusers_model():
    torch.manual_seed(SEED)
    model = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(6, 6, 6), decoder_block_out_channels=(6, 6, 6), latent_channels=3, num_encoder_blocks=(1, 2, 3), num_decoder_blocks=(2, 3, 1),
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            deviation = 0.2 if parameter.dim() == 1 else (1.5 / parameter[0].numel()) ** 0.5
            parameter.copy_(deviation * torch.randn_like(parameter))
    x = torch.rand(2, 3, 16, 24) * 2 - 1
    latents = model.encode(x).latents
    picture = model.decode(latents).sample
    loss = (picture - x).abs().mean()
    loss.backward()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, safe_serialization=True)
        shutil.copy(Path(folder) / "config.json", HERE / "diffusers_config.json")
        shutil.copy(Path(folder) / "diffusion_pytorch_model.safetensors", HERE / "diffusers_weights.safetensors")
    save(HERE / "diffusers_results.safetensors", {
        "x": channels_last(x), "latents": channels_last(latents), "picture": channels_last(picture), "loss": loss.reshape(1),
    })
    save(HERE / "diffusers_gradients.safetensors", {name: parameter.grad for name, parameter in model.named_parameters()})


def taef2(folder):
    for side in ["encoder", "decoder"]:
        save(ASSETS / f"taef2_{side}.safetensors", torch.load(folder / f"taef2_{side}.pth", weights_only=True))
    pixels = lambda name: torch.from_numpy(numpy.array(Image.open(folder / name).convert("RGB")))
    save(HERE / "taef2.safetensors", {"picture": pixels("mage-noto-128.png"), "reconstructed": pixels("mage-noto-128-reconstructed.png")})


def provenance():
    packages = ["diffusers", "torch", "safetensors"]
    lines = [f"seed = {SEED}", f'python = "{platform.python_version()}"', "", "[packages]"]
    lines += [f'{package} = "{importlib.metadata.version(package)}"' for package in packages]
    lines += ["", "[licences]", 'weights = "random, made by this script; TAEF2: MIT, github.com/madebyollin/taesd"', 'picture = "a Noto emoji, Apache-2.0"']
    (HERE / "PROVENANCE.toml").write_text("# Written by make.py.\n" + "\n".join(lines) + "\n")


diffusers_model()
if len(sys.argv) > 1:
    taef2(Path(sys.argv[1]))
provenance()
