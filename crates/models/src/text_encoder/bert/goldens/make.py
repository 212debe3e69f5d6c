"""Makes the goldens of BERT: a small random `transformers.BertModel`, its states and sentences.

Run: python make.py   (writes the .safetensors and .json files and PROVENANCE.toml beside this script)
"""

import platform
import shutil
import tempfile
from pathlib import Path

import safetensors.torch
import torch
import transformers
from transformers import BertConfig, BertModel

HERE = Path(__file__).parent
SEED = 20311
torch.set_num_threads(1)


def spread(model):
    """Random values everywhere, norms and biases too, so that no term of the formula is idle."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = "LayerNorm" in name
            parameter.copy_((parameter if norm else 0) + 0.3 * torch.randn_like(parameter))


def bert():
    torch.manual_seed(SEED)
    config = BertConfig(
        vocab_size=30, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20, max_position_embeddings=11, type_vocab_size=2,
    )
    network = BertModel(config).eval()
    spread(network)
    tokens = torch.randint(1, 30, (3, 9))
    visible = torch.ones(3, 9, dtype=torch.bool)
    for row, length in enumerate([5, 9, 1]):
        tokens[row, length:], visible[row, length:] = 0, False
    with torch.no_grad():
        states = network(input_ids=tokens, attention_mask=visible.long()).last_hidden_state
    # Mean pooling as sentence-transformers writes it.
    weights = visible[..., None].float()
    sentence = torch.nn.functional.normalize((states * weights).sum(1) / weights.sum(1).clamp(min=1e-9), dim=1)
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder, safe_serialization=True)
        shutil.copy(Path(folder) / "config.json", HERE / "config.json")
        shutil.copy(Path(folder) / "model.safetensors", HERE / "weights.safetensors")
    safetensors.torch.save_file({"tokens": tokens, "visible": visible, "states": states, "sentence": sentence}, HERE / "results.safetensors")


def provenance():
    lines = [
        'script = "make.py"',
        f"seed = {SEED}",
        f'python = "{platform.python_version()}"',
        f'torch = "{torch.__version__}"',
        f'transformers = "{transformers.__version__}"',
        f'safetensors = "{safetensors.__version__}"',
        "",
        "[licences]",
        'transformers = "Apache-2.0"',
        'weights = "random, made by this script"',
    ]
    (HERE / "PROVENANCE.toml").write_text("\n".join(lines) + "\n")


bert()
provenance()
