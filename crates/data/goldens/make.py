"""Makes the goldens of the data crate from independent implementations: Pillow, tokenizers, open_clip, sentencepiece, transformers.

    python make.py

Needs pillow, tokenizers, open_clip_torch, sentencepiece, transformers (versions used: PROVENANCE.toml). Run it only to change a golden on purpose.
"""

import gzip
import io
import importlib.metadata
import json
import pathlib
import random
import tempfile

import sentencepiece
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from open_clip.tokenizer import SimpleTokenizer
from transformers import BertTokenizer

HERE = pathlib.Path(__file__).parent
TEXTS = [
    "",
    "a red fox, noto style",
    "A RED   Fox,\tNoto style!",
    "the woman's 2 boots aren't 1,234 miles away",
    "woman: medium skin tone, red hair",
    "ein großer Bär, naïve café, 日本の旗 🦊",
    "###??!! ... (a) [b] {c}",
]
SUBJECTS = ["fox", "owl", "bear", "waving hand", "woman", "man", "flag of Japan", "red heart", "house", "boots", "cat face"]
STYLES = ["noto", "twemoji", "fluent flat", "fluent", "fxemoji"]
CAPTIONS = [f"a {subject}, {style} style" for subject in SUBJECTS for style in STYLES] + ["a red fox", "the red owl's house"]


def resized_pictures():
    generator = random.Random(1)
    source = Image.new("RGB", (23, 17))
    source.putdata([tuple(generator.randrange(256) for _ in range(3)) for _ in range(23 * 17)])
    source.save(HERE / "resize_source.png")
    filters = {"lanczos": Image.LANCZOS, "bicubic": Image.BICUBIC, "bilinear": Image.BILINEAR, "area": Image.BOX}
    for name, kind in filters.items():
        for size in [(8, 5), (40, 31)]:
            source.resize(size, kind).save(HERE / f"resize_{name}_{size[0]}x{size[1]}.png")


def oriented_pictures():
    """The same 24x16 picture under every EXIF orientation, as cameras store it: turned so that the tag turns it back."""
    upright = Image.new("RGB", (24, 16), (255, 255, 255))
    upright.paste((255, 0, 0), (0, 0, 8, 8))
    upright.paste((0, 0, 255), (16, 8, 24, 16))
    T = Image.Transpose
    undo = {1: None, 2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE, 6: T.ROTATE_90, 7: T.TRANSVERSE, 8: T.ROTATE_270}
    for orientation, turn in undo.items():
        stored = upright if turn is None else upright.transpose(turn)
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored.save(HERE / f"exif_{orientation}.jpg", quality=95, subsampling=0, exif=exif)


def byte_level_bpe():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, min_frequency=2, show_progress=False, special_tokens=["<pad>", "<start>", "<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CAPTIONS, trainer)
    encoded = [{"text": text, "tokens": tokenizer.encode(text, add_special_tokens=False).ids} for text in TEXTS]
    write_json("byte_level_bpe.json", {"captions": CAPTIONS, "vocabulary_size": tokenizer.get_vocab_size(), "encoded": encoded})


def clip_bpe():
    """A merges file of CLIP's format, learned here, read by open_clip."""
    merges = learned_merges(60)
    path = HERE / "clip_merges.txt.gz"
    with open(path, "wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as file:
        # No newline at the end: open_clip would read an empty merge after it, which the published file is cut to avoid.
        file.write(("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges)).encode())
    tokenizer = SimpleTokenizer(bpe_path=str(path), context_length=24)
    encoded = []
    for text in TEXTS + ["fox " * 40]:
        encoded.append({"text": text, "tokens": tokenizer.encode(text), "padded": tokenizer(text)[0].tolist()})
    write_json("clip_bpe.json", {"vocabulary_size": tokenizer.vocab_size, "length": 24, "encoded": encoded})


def learned_merges(count):
    words = {}
    for caption in CAPTIONS:
        for word in caption.lower().replace(",", " ,").replace("'s", " 's").split():
            symbols = tuple(word[:-1]) + (word[-1] + "</w>",)
            words[symbols] = words.get(symbols, 0) + 1
    merges = []
    while len(merges) < count:
        pairs = {}
        for symbols, number in words.items():
            for pair in zip(symbols, symbols[1:]):
                pairs[pair] = pairs.get(pair, 0) + number
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        words = {join(symbols, best): number for symbols, number in words.items()}
    return merges


def join(symbols, pair):
    out, place = [], 0
    while place < len(symbols):
        if symbols[place : place + 2] == pair:
            out.append("".join(pair))
            place += 2
        else:
            out.append(symbols[place])
            place += 1
    return tuple(out)


def sentence_piece():
    """Unigram models with T5's special tokens: one with SentencePiece's own character map, one without and with bytes for unknown characters."""
    texts = TEXTS + [
        "  two  spaces,\ta tab\n and full width ＡＢＣ ½ ﬁ ™ ",
        "ends here </s> or <pad> or <unk> or even a</s>b, <0x41>",
        "one ▁ itself",
        "e\u0301 and é, かﾞ",
        "fox " * 30,
        "\u2028\u00a0\u200b odd spaces",
    ]
    for name, options in [("sentence_piece", {}), ("sentence_piece_bytes", {"normalization_rule_name": "identity", "byte_fallback": True})]:
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CAPTIONS * 3), model_writer=model, model_type="unigram", vocab_size=340 if options else 100, hard_vocab_limit=False,
            pad_id=0, eos_id=1, unk_id=2, bos_id=-1, pad_piece="<pad>", minloglevel=2, **options,
        )
        (HERE / f"{name}.model").write_bytes(model.getvalue())
        processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
        encoded = [{"text": text, "tokens": processor.encode(text)} for text in texts]
        write_json(f"{name}.json", {"vocabulary_size": processor.get_piece_size(), "encoded": encoded})


def word_piece():
    """BERT's pieces learned here, read by transformers' own tokenizer."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=180, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False)
    tokenizer.train_from_iterator(CAPTIONS + ["A naïve café, 日本 Großer Bär"], trainer)
    pieces = sorted(tokenizer.get_vocab().items(), key=lambda piece: piece[1])
    path = HERE / "word_pieces.txt"
    path.write_text("".join(piece + "\n" for piece, _ in pieces))
    texts = TEXTS + ["ends here [SEP] or [PAD]", "Ünïcödé Ａ\u0000b\u00a0c", "x" * 120]
    cases = {}
    with tempfile.TemporaryDirectory() as folder:
        for key, lower in [("lower", True), ("kept", False)]:
            bert = BertTokenizer(vocab=str(path), do_lower_case=lower)
            # Spelled special tokens mean their letters, as in everything of ours.
            bert.split_special_tokens = True
            bert.backend_tokenizer.encode_special_tokens = True
            # The published form, read by ours as any tokenizer.json.
            bert.save_pretrained(folder)
            (HERE / f"word_pieces_{key}_tokenizer.json").write_text((pathlib.Path(folder) / "tokenizer.json").read_text())
            cases[key] = [{"text": text, "tokens": bert(text)["input_ids"]} for text in texts]
    write_json("word_pieces.json", {"vocabulary_size": len(pieces), **cases})


def write_json(name, value):
    (HERE / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def provenance():
    versions = {name: importlib.metadata.version(name) for name in ["pillow", "tokenizers", "open_clip_torch", "sentencepiece", "transformers"]}
    lines = ["# Independent implementations behind the files in this folder, made by make.py.", "[versions]"]
    (HERE / "PROVENANCE.toml").write_text("\n".join(lines + [f'{name} = "{version}"' for name, version in versions.items()]) + "\n")


if __name__ == "__main__":
    resized_pictures()
    oriented_pictures()
    byte_level_bpe()
    clip_bpe()
    sentence_piece()
    word_piece()
    provenance()
