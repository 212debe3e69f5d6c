"""Checks what `smalti generate --json` printed: pictures that exist, decode, differ, and repeat for the same seed."""

import json
import struct
import sys
import zlib


def pixels(path):
    """The inflated scan lines of a PNG and its size; fails on anything cut or corrupt."""
    data = open(path, "rb").read()
    assert data[:8] == b"\x89PNG\r\n\x1a\n", f"{path}: not a PNG"
    position, scan, size = 8, b"", None
    while position < len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        kind, body = data[position + 4 : position + 8], data[position + 8 : position + 8 + length]
        (checksum,) = struct.unpack(">I", data[position + 8 + length : position + 12 + length])
        assert zlib.crc32(kind + body) == checksum, f"{path}: chunk {kind} is corrupt"
        if kind == b"IHDR":
            size = struct.unpack(">II", body[:8])
        if kind == b"IDAT":
            scan += body
        position += 12 + length
    return size, zlib.decompress(scan)


first, second = (json.load(open(path)) for path in sys.argv[1:3])
assert len(first["pictures"]) == 2, "expected the 2 kept pictures"
assert len(second["pictures"]) == 2, "expected 2 pictures"
for picture in first["pictures"] + second["pictures"]:
    size, scan = pixels(picture["file"])
    assert size == (64, 64), f"{picture['file']}: expected 64 x 64, found {size}"
    assert len(set(scan)) > 16, f"{picture['file']}: flat picture"
    assert len(picture["image_tokens"]) == 64 and len(set(picture["image_tokens"])) > 1, "expected 64 image tokens"
scores = [picture["score"] for picture in first["pictures"]]
assert scores == sorted(scores, reverse=True), f"kept pictures are not ranked: {scores}"

by_index = {picture["index"]: open(picture["file"], "rb").read() for picture in first["pictures"]}
again = {picture["index"]: open(picture["file"], "rb").read() for picture in second["pictures"]}
shared = set(by_index) & set(again)
for index in shared:
    assert by_index[index] == again[index], f"picture {index}: same seed, other bytes"
print(f"pictures: {len(by_index) + len(again)} checked, {len(shared)} compared byte for byte")
