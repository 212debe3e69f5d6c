"""Makes the goldens of the patch discriminator: taming's `NLayerDiscriminator` in training and evaluation mode, running statistics included.

Run: python make.py   (writes taming.safetensors and PROVENANCE.toml beside this script)
"""

import importlib.metadata
import platform
from pathlib import Path

import safetensors.torch
import torch
from taming.modules.discriminator.model import NLayerDiscriminator, weights_init

HERE = Path(__file__).parent
SEED = 20262
torch.set_num_threads(1)
torch.manual_seed(SEED)

model = NLayerDiscriminator(ndf=3, n_layers=3).apply(weights_init)
with torch.no_grad():
    for name, parameter in model.named_parameters():
        parameter.copy_(1 + 0.3 * torch.randn_like(parameter) if parameter.dim() == 1 else torch.randn_like(parameter) / parameter[0].numel() ** 0.5)
before = {f"before.{name}": tensor.clone() for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
x = torch.rand(2, 3, 33, 40) * 2 - 1
training = model.train()(x)
training = model.train()(-0.5 * x.flip(0))
after = {f"after.{name}": tensor.clone() for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
evaluation = model.eval()(x)
channels_last = lambda tensor: tensor.detach().permute(0, 2, 3, 1).contiguous()
safetensors.torch.save_file(
    before | after | {"x": channels_last(x), "training": channels_last(training), "evaluation": channels_last(evaluation)}, HERE / "taming.safetensors",
)
packages = [f'{package} = "{importlib.metadata.version(package)}"' for package in ["taming-transformers-rom1504", "torch", "safetensors"]]
lines = ["# Written by make.py.", f"seed = {SEED}", f'python = "{platform.python_version()}"', "", "[packages]", *packages]
(HERE / "PROVENANCE.toml").write_text("\n".join(lines) + "\n")
