"""Makes the golden of Inception: features of `pytorch_fid`'s network with weights and pictures that a formula gives, so that no weights need to be stored.

Run: python make.py   (writes state.txt, features.safetensors and PROVENANCE.toml beside this script)
"""

import importlib.metadata
import platform
from pathlib import Path

import numpy
import pytorch_fid.inception
import safetensors.torch
import torch

HERE = Path(__file__).parent
torch.set_num_threads(1)


def pseudo_random(count, stream):
    """Numbers in [-0.5, 0.5): a hash of place and stream, the same in tests.rs."""
    mask = numpy.uint64(0xFFFFFFFF)
    x = (numpy.arange(count, dtype=numpy.uint64) * numpy.uint64(2654435761) + numpy.uint64(stream) * numpy.uint64(40503) + numpy.uint64(12345)) & mask
    x ^= x >> numpy.uint64(16)
    x = (x * numpy.uint64(2246822519)) & mask
    x ^= x >> numpy.uint64(13)
    x = (x * numpy.uint64(3266489917)) & mask
    x ^= x >> numpy.uint64(16)
    return ((x >> numpy.uint64(8)).astype(numpy.float32) / numpy.float32(1 << 24)) - numpy.float32(0.5)


def value(name, shape, stream):
    uniform = pseudo_random(int(numpy.prod(shape)), stream)
    if name.endswith("conv.weight"):
        uniform = uniform * numpy.float32((24.0 / numpy.prod(shape[1:])) ** 0.5)
    elif name.endswith("running_var") or name.endswith("bn.weight"):
        uniform = uniform * numpy.float32(0.5) + numpy.float32(1)
    else:
        uniform = uniform * numpy.float32(0.2)
    return torch.from_numpy(uniform.reshape(shape))


def main():
    captured = {}

    def state(*_, **__):
        network = pytorch_fid.inception._inception_v3(num_classes=1008, aux_logits=False, weights=None)
        for name, block in blocks.items():
            setattr(network, name, block())
        names = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        captured.update(names)
        return {name: value(name, shape, stream) if shape else torch.tensor(0) for stream, (name, shape) in enumerate(names.items())}

    # The same replacements as in pytorch_fid.inception.fid_inception_v3, to learn names and shapes without its download.
    fid = pytorch_fid.inception
    blocks = {
        "Mixed_5b": lambda: fid.FIDInceptionA(192, pool_features=32),
        "Mixed_5c": lambda: fid.FIDInceptionA(256, pool_features=64),
        "Mixed_5d": lambda: fid.FIDInceptionA(288, pool_features=64),
        "Mixed_6b": lambda: fid.FIDInceptionC(768, channels_7x7=128),
        "Mixed_6c": lambda: fid.FIDInceptionC(768, channels_7x7=160),
        "Mixed_6d": lambda: fid.FIDInceptionC(768, channels_7x7=160),
        "Mixed_6e": lambda: fid.FIDInceptionC(768, channels_7x7=192),
        "Mixed_7b": lambda: fid.FIDInceptionE_1(1280),
        "Mixed_7c": lambda: fid.FIDInceptionE_2(2048),
    }
    fid.load_state_dict_from_url = state
    network = fid.InceptionV3(resize_input=False).eval()
    x = torch.from_numpy(pseudo_random(2 * 91 * 75 * 3, 9999).reshape(2, 91, 75, 3) + numpy.float32(0.5)).permute(0, 3, 1, 2)
    with torch.no_grad():
        features = network(x)[0].reshape(2, 2048)
    print(features.mean(), features.std(), features.max())
    safetensors.torch.save_file({"features": features.contiguous()}, HERE / "features.safetensors")
    lines = [" ".join([name, *map(str, shape)]) for name, shape in captured.items()]
    (HERE / "state.txt").write_text("\n".join(lines) + "\n")
    packages = ["torch", "torchvision", "pytorch-fid", "safetensors", "numpy"]
    lines = ['script = "make.py"', f'python = "{platform.python_version()}"'] + [f'{name} = "{importlib.metadata.version(name)}"' for name in packages]
    lines += ["", "[licences]", 'pytorch-fid = "Apache-2.0"', 'weights = "from a formula in this script"']
    (HERE / "PROVENANCE.toml").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
