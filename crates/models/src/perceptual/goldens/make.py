"""Makes the goldens of LPIPS: the package `lpips` (version 0.1, net "vgg") with random trunk weights, at narrower stages so that the file stays small.

Run: python make.py   (writes lpips.safetensors, heads.pth and PROVENANCE.toml beside this script)
"""

import importlib.metadata
import platform
from pathlib import Path

import lpips
import safetensors.torch
import torch

HERE = Path(__file__).parent
SEED = 20263
WIDTHS = [4, 5, 6, 7, 8]
torch.set_num_threads(1)
torch.manual_seed(SEED)


def narrow_vgg16(**_):
    """torchvision's `vgg16` of other widths: the same sequence, so that lpips cuts it at the same places."""
    layers, channels = [], 3
    for stage, width in enumerate(WIDTHS):
        for _ in range(2 if stage < 2 else 3):
            layers += [torch.nn.Conv2d(channels, width, 3, padding=1), torch.nn.ReLU(inplace=True)]
            channels = width
        layers.append(torch.nn.MaxPool2d(2))
    holder = torch.nn.Module()
    holder.features = torch.nn.Sequential(*layers)
    return holder


lpips.pretrained_networks.tv.vgg16 = narrow_vgg16
model = lpips.LPIPS(pretrained=False, net="vgg", pnet_rand=True, verbose=False)
for index, width in enumerate(WIDTHS):
    head = lpips.lpips.NetLinLayer(width, use_dropout=True)
    setattr(model, f"lin{index}", head)
    model.lins[index] = head
model.eval()
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if "lin" in name:
            parameter.copy_(torch.rand_like(parameter))
        elif parameter.dim() == 1:
            parameter.copy_(0.1 * torch.randn_like(parameter))
        else:
            parameter.copy_(torch.randn_like(parameter) * (2 / parameter[0].numel()) ** 0.5)

# 35 by 42: two poolings meet an odd side.
x = torch.rand(2, 3, 35, 42) * 2 - 1
y = (x + 0.3 * torch.randn_like(x)).clamp(-1, 1).requires_grad_()
distance = model(x, y)
distance.mean().backward()
channels_last = lambda tensor: tensor.detach().permute(0, 2, 3, 1).contiguous()
state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
safetensors.torch.save_file(
    {f"weights.{name}": tensor for name, tensor in state.items()}
    | {"x": channels_last(x), "y": channels_last(y), "distance": distance.detach().reshape(2), "gradient": channels_last(y.grad)},
    HERE / "lpips.safetensors",
)
# Random heads of the true widths, in the names and the format of lpips' own vgg.pth.
heads = {f"lin{index}.model.1.weight": torch.rand(1, width, 1, 1) for index, width in enumerate([64, 128, 256, 512, 512])}
torch.save(heads, HERE / "heads.pth", _use_new_zipfile_serialization=False)
packages = [f'{package} = "{importlib.metadata.version(package)}"' for package in ["lpips", "torch", "safetensors"]]
lines = ["# Written by make.py.", f"seed = {SEED}", f'python = "{platform.python_version()}"', "", "[packages]", *packages]
(HERE / "PROVENANCE.toml").write_text("\n".join(lines) + "\n")
