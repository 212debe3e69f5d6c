"""Small checkpoints as `torch.save` writes them, and what is in them as safetensors.

    python make.py        (versions: PROVENANCE.toml)
"""

import argparse
import collections
import pathlib
import sys
import types

import safetensors.torch
import torch

here = pathlib.Path(__file__).parent
torch.manual_seed(2718)


def expected(name, tensors):
    safetensors.torch.save_file({key: value.detach().float().contiguous().clone() for key, value in tensors.items()}, here / f"{name}.safetensors")


def formats():
    storage = torch.randn(40)
    matrix = torch.randn(3, 5)
    tensors = collections.OrderedDict(
        f32=torch.randn(2, 3),
        f64=torch.randn(4, dtype=torch.float64),
        f16=torch.randn(2, 2).half(),
        bf16=torch.randn(5).bfloat16(),
        transposed=matrix.t(),
        permuted=torch.randn(2, 3, 4, 5).permute(0, 2, 3, 1),
        channels_last=torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        offset=storage[7:19].view(3, 4),
        stepped=storage[3:33:3],
        expanded=torch.tensor([[1.5], [2.5]]).expand(2, 3),
        shared=storage,
        scalar=torch.tensor(0.25),
        empty=torch.zeros(0, 7),
        parameter=torch.nn.Parameter(torch.randn(3)),
    )
    return tensors


def module():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    return network


class Scale(torch.nn.Module):
    """The older format keeps the source text of classes; this one's is short."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight


def lightning(network):
    """The outer shape of a PyTorch Lightning checkpoint: weights among optimiser state, callbacks keyed by class, hyper-parameters."""
    optimiser = torch.optim.Adam(network.parameters())
    network(torch.randn(2, 3, 5, 5)).sum().backward()
    optimiser.step()
    callbacks = types.ModuleType("some_lightning.callbacks")
    callbacks.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": "some_lightning.callbacks"})
    sys.modules["some_lightning"] = types.ModuleType("some_lightning")
    sys.modules["some_lightning.callbacks"] = callbacks
    keeper = callbacks.ModelCheckpoint()
    keeper.best = 0.5
    keeper.owner = keeper
    return {
        "epoch": 3,
        "global_step": 1 << 40,
        "pytorch-lightning_version": "1.0.8",
        "state_dict": network.state_dict(),
        "callbacks": {callbacks.ModelCheckpoint: {"best_model_score": torch.tensor(0.5), "keeper": keeper}},
        "optimizer_states": [optimiser.state_dict()],
        "hyper_parameters": argparse.Namespace(learning_rate=4.5e-6, names={"a", "b"}, big=1 << 100, raw=b"bytes", path=pathlib.PurePosixPath("x")),
    }


tensors = formats()
integers = {"i64": torch.arange(3), "mask": torch.tensor([True, False])}
torch.save({**tensors, **integers}, here / "formats.pt")
for protocol in (2, 4):
    torch.save({**tensors, **integers}, here / f"formats_older_protocol_{protocol}.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=False)
expected("formats", tensors)

network = module()
checkpoint = lightning(network)
for protocol in (2, 4):
    torch.save(checkpoint, here / f"lightning_protocol_{protocol}.ckpt", pickle_protocol=protocol)
expected("lightning", {key: value for key, value in network.state_dict().items() if value.is_floating_point()})
torch.save(network, here / "whole_module.pt")
torch.save(Scale(network[0].weight), here / "whole_module_older.pt", _use_new_zipfile_serialization=False)

versions = f'torch = "{torch.__version__}"\nsafetensors = "{safetensors.__version__}"\npython = "{sys.version.split()[0]}"\n'
(here / "PROVENANCE.toml").write_text('script = "make.py"\nseed = 2718\n' + versions)
