"""PyTorch's side of the start-up row: from nothing to one picture, the work of `smalti generate` with bundles/pictograms.

    python torch_start.py BUNDLE_TOML THREADS

Networks of the bundle's sizes with random weights: reading and checking weights, tokenizing the caption and writing a PNG are left out, in torch's favour.
"""

import sys
import tomllib

import torch
import torch.nn as nn
import torch.nn.functional as F

torch.set_num_threads(int(sys.argv[2]))
torch.manual_seed(0)
with open(sys.argv[1], "rb") as file:
    bundle = tomllib.load(file)
bart, vqgan = bundle["generator"]["model"]["dalle_bart"], bundle["image_tokenizer"]["model"]["vqgan"]
CHANNELS, ROWS = bart["channels"], 2  # with the caption and without it, for guidance


class Attention(nn.Module):
    def __init__(self, heads):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(CHANNELS, CHANNELS, bias=False) for _ in range(4))

    def split(self, x):
        return x.reshape(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, x, keys, values):
        mixed = F.scaled_dot_product_attention(self.split(self.query(x)), keys, values)
        return self.output(mixed.transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    """NormFormer with a gated feed-forward, as DALL-E mini."""

    def __init__(self, stack, crosses):
        super().__init__()
        self.attention = Attention(stack["head_count"])
        self.cross = Attention(stack["head_count"]) if crosses else None
        inner = stack["feed_forward_channels"]
        self.norms = nn.ModuleList([nn.LayerNorm(CHANNELS) for _ in range(5)])
        self.inner_norm = nn.LayerNorm(inner)
        self.gate, self.expand, self.contract = nn.Linear(CHANNELS, inner, bias=False), nn.Linear(CHANNELS, inner, bias=False), nn.Linear(inner, CHANNELS, bias=False)

    def forward(self, x, history=None, position=0, text=None):
        h = self.norms[0](x)
        keys, values = (self.attention.split(layer(h)) for layer in (self.attention.key, self.attention.value))
        if history is not None:
            history[0][:, :, position : position + 1], history[1][:, :, position : position + 1] = keys, values
            keys, values = history[0][:, :, : position + 1], history[1][:, :, : position + 1]
        x = x + self.norms[1](self.attention(h, keys, values))
        if self.cross is not None:
            x = x + self.norms[3](self.cross(self.norms[2](x), *text))
        h = self.norms[4](x)
        return x + self.contract(self.inner_norm(F.gelu(self.gate(h)) * self.expand(h)))


def main():
    from torch_side import Decoder

    tokens, vocabulary = bart["image_token_count"], bart["image_vocabulary"]
    text_table, image_table = nn.Embedding(bart["text_vocabulary"], CHANNELS), nn.Embedding(vocabulary + 1, CHANNELS)
    positions = torch.randn(max(tokens, bart["text_token_count"]), CHANNELS)
    encoder = nn.ModuleList([Block(bart["encoder"], False) for _ in range(bart["encoder"]["block_count"])])
    decoder = nn.ModuleList([Block(bart["decoder"], True) for _ in range(bart["decoder"]["block_count"])])
    norm, head, codebook = nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, vocabulary, bias=False), torch.randn(vqgan["quantizer"]["code_count"], vqgan["quantizer"]["code_channels"])
    network = vqgan["network"]
    pictures = Decoder(
        network["base_channels"], network["channel_multipliers"], network["residual_block_count"], network["latent_channels"],
        vqgan["quantizer"]["code_channels"], network["attention_levels"], network["group_count"],
    ).eval()
    with torch.no_grad():
        memory = text_table(torch.randint(0, bart["text_vocabulary"], (ROWS, bart["text_token_count"]))) + positions[: bart["text_token_count"]]
        for block in encoder:
            memory = block(memory)
        texts = [(block.cross.split(block.cross.key(memory)), block.cross.split(block.cross.value(memory))) for block in decoder]
        heads = bart["decoder"]["head_count"]
        histories = [tuple(torch.zeros(ROWS, heads, tokens, CHANNELS // heads) for _ in range(2)) for _ in decoder]
        previous, chosen = torch.full((1,), vocabulary), []
        for position in range(tokens):
            x = (image_table(previous.expand(ROWS)) + positions[position])[:, None]
            for block, history, text in zip(decoder, histories, texts):
                x = block(x, history, position, text)
            conditional, unconditional = head(norm(x))[:, 0]
            probabilities = F.softmax((unconditional + 3.0 * (conditional - unconditional)).topk(256).values, 0)
            previous = torch.multinomial(probabilities, 1)
            chosen.append(previous)
        side = round(tokens**0.5)
        pictures(codebook[torch.cat(chosen)].T.reshape(1, -1, side, side))


if __name__ == "__main__":
    sys.argv = [sys.argv[0], "A", "f32", sys.argv[2]]  # what torch_side reads when it is imported
    main()
