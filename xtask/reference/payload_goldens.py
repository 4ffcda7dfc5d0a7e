"""Writes tests/golden/payloads/: whole payloads, which the parser must accept and decode to these values and no others.

An independent writer of the formats documented in src/payload/mod.rs and header.rs, on `sparseloco.py`'s records. Needs
numpy and the PyPI package `blake3`. Run it from the repository's root:

    python xtask/reference/payload_goldens.py

Two payloads for each quantiser and each k. `encoded` holds what the encoder must make of known noise. `content` holds what no
encoder would choose but any peer may send: the ends of every range, codes by chance. Both have a full chunk, chunks padded on
one edge and on both, runs of a 1-D tensor, chunks with fewer parameters than k, and chunks of scale 0, full and short.

`index.txt` has, for each payload, the BLAKE3 of its bytes and the BLAKE3 of its decoded values (f32, little-endian, chunk-major,
padding included). sr25519 is not in Python's reach, so the signatures in `signatures.txt` are an input: made once with
`HotkeyPair::from_seed(&[7; 32])`, whose signatures are deterministic, and copied from the Rust test that prints them if they differ.
"""

import math
import pathlib
import struct

import numpy as np
from blake3 import blake3
from sparseloco import DECAY, HOTKEY, SCALE_TABLE, F, chunks_of, encode, noise, record

FOLDER = pathlib.Path("tests/golden/payloads")
SHAPES = [
    ("block", (64, 64)),
    ("edges", (70, 65)),
    ("run", (4200,)),
    ("half_frozen", (64, 70)),
    ("short", (3,)),
    ("frozen", (5,)),
    ("one", (1,)),
]
NUMBERS = {"two-bit": 0, "one-bit": 1, "sigma-bins": 2}
LEVEL_MAX = 8 * 4096
TWO_BIT_LEVELS = [(1, LEVEL_MAX), (3932, 4506), (1, 2), (LEVEL_MAX - 1, LEVEL_MAX), (4096, 8192), (7, 8), (4095, 4096)]
SIGMA_BINS = [
    (64, 64, -64, 0, 2**-149),
    (-64, -64, 64, 2**-126, -(2**-149)),
    (0, 0, 0, 0, 0),
    (0.1, -0.3, 0.7, -1.1, 1.3),
    (2**-30, -(2**-30), 2**-40, 63.999996, -63.999996),
    (1, -1, 1, -1, 1),
    (-0.5, 0.5, 0.25, 0.125, 0.0625),
]
# One for each chunk that is not of scale 0: both ends first.
SCALES = [255, 1, 2, 254, 128, 225, 224, 226, 9, 200]


def layout_hash():
    number = lambda n: struct.pack("<Q", n)
    out = number(len(SHAPES))
    for name, shape in SHAPES:
        out += number(len(name)) + name.encode() + number(len(shape)) + b"".join(map(number, shape))
    return blake3(out, derive_key_context="convoke 2026-11 tensor layout v1").digest()


def header(k, quantiser, round_number, uid, inner_steps):
    n_chunks = sum(len(chunks_of(shape)) for _, shape in SHAPES)
    return (
        b"CVPL"
        + struct.pack("<HHBII", 1, k, NUMBERS[quantiser], len(SHAPES), n_chunks)
        + bytes(range(32))
        + struct.pack("<QHI", round_number, uid, inner_steps)
        + bytes.fromhex(HOTKEY)
        + bytes(range(100, 132))
        + layout_hash()
    )


def is_frozen(name, chunk_of_tensor):
    return name == "frozen" or (name == "half_frozen" and chunk_of_tensor == 0)


def accumulated():
    """a = fl(fl(0.95 e) + d) of heavy-tailed noise, row-major; zero in the frozen chunks."""
    heavy = lambda i, seed: noise(i, seed) * noise(i, seed) * noise(i, seed) * F(65536)
    start, out = 0, []
    for name, shape in SHAPES:
        n = math.prod(shape)
        values = [DECAY * heavy(start + i, 1) + heavy(start + i, 2) for i in range(n)]
        for chunk_of_tensor, chunk in enumerate(chunks_of(shape)):
            for i in chunk.values() if is_frozen(name, chunk_of_tensor) else []:
                values[i] = F(0)
        out.append(values)
        start += n
    return out


def content(k, quantiser):
    """Levels and records at the ends of their ranges, positions and codes by chance."""
    levels, records, scales, chunk_idx = b"", b"", iter(SCALES), 0
    for tensor_idx, (name, shape) in enumerate(SHAPES):
        if quantiser == "two-bit":
            levels += struct.pack("<2H", *TWO_BIT_LEVELS[tensor_idx])
        if quantiser == "sigma-bins":
            levels += struct.pack("<5f", *SIGMA_BINS[tensor_idx])
        for chunk_of_tensor, places in enumerate(chunks_of(shape)):
            draw = lambda position: noise(4096 * chunk_idx + position, 3 + k)
            positions = sorted(sorted(places, key=draw)[:k])
            codes = [int(abs(draw(p)) * 2**30) % (2 if quantiser == "one-bit" else 4) for p in positions]
            scale = 0
            if quantiser != "sigma-bins":
                if is_frozen(name, chunk_of_tensor):
                    positions, codes = sorted(places)[: len(codes)], [0] * len(codes)
                else:
                    scale = next(scales)
            records += record(k, positions, codes, scale, quantiser)
            chunk_idx += 1
    return levels, records


def bits(data, count):
    number = int.from_bytes(data, "little")
    return [number >> i & 1 for i in range(count)]


def decoded(k, quantiser, levels, records):
    """The values, chunk-major and dense, read back from the bytes."""
    n_chunks = sum(len(chunks_of(shape)) for _, shape in SHAPES)
    dense = np.zeros((n_chunks, 4096), dtype=np.float32)
    length, level_len, chunk_idx = len(records) // n_chunks, len(levels) // len(SHAPES), 0
    for tensor_idx, (_, shape) in enumerate(SHAPES):
        own = levels[tensor_idx * level_len :][:level_len]
        for places in chunks_of(shape):
            data, kept = records[chunk_idx * length :][:length], min(k, len(places))
            rows, data = data[: -(-(k + 64) // 8)], data[-(-(k + 64) // 8) :]
            columns, data = data[: -(-6 * k // 8)], data[-(-6 * k // 8) :]
            ones = [i for i, bit in enumerate(bits(rows, k + 64)) if bit]
            column_bits = bits(columns, 6 * k)
            column = lambda i: sum(column_bits[6 * i + b] << b for b in range(6))
            positions = [(one - i) * 64 + column(i) for i, one in enumerate(ones)]
            plane = -(-k // 8)
            if quantiser == "one-bit":
                scale = SCALE_TABLE[data[-1]]
                table, codes = [scale, -scale], bits(data[:plane], kept)
            elif quantiser == "two-bit":
                low, high = (SCALE_TABLE[data[-1]] * F(level / 4096) for level in struct.unpack("<2H", own))
                table = [low, -low, high, -high]
                codes = [s | m << 1 for s, m in zip(bits(data[:plane], kept), bits(data[plane:], kept))]
            else:
                shift, *lookup = (F(number) for number in struct.unpack("<5f", own))
                table = [centre + shift for centre in lookup]
                both = bits(data, 2 * kept)
                codes = [both[2 * i] | both[2 * i + 1] << 1 for i in range(kept)]
            assert len(positions) == kept and all(p in places for p in positions)
            for position, code in zip(positions, codes):
                dense[chunk_idx, position] = table[code]
            chunk_idx += 1
    return dense


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    lines = (FOLDER / "signatures.txt").read_text().split("\n") if (FOLDER / "signatures.txt").exists() else []
    signatures = dict(line.split() for line in lines if line)
    a, index = accumulated(), ""
    for k in (64, 118):
        for quantiser in ("one-bit", "two-bit", "sigma-bins"):
            for kind in ("encoded", "content"):
                name = f"{kind}-{quantiser}-{k}"
                if kind == "encoded":
                    levels, records = encode(k, quantiser, SHAPES, a)
                    head = header(k, quantiser, 7, 3, 30)
                else:
                    levels, records = content(k, quantiser)
                    head = header(k, quantiser, 2**64 - 1, 2**16 - 1, 2**32 - 1)
                signature = bytes.fromhex(signatures.get(name, "00" * 64))
                payload = head + levels + records + signature
                dense = decoded(k, quantiser, levels, records)
                (FOLDER / f"{name}.bin").write_bytes(payload)
                values = blake3(dense.astype("<f4").tobytes()).hexdigest()
                index += f"{name} {blake3(payload).hexdigest()} {values}\n"
    (FOLDER / "index.txt").write_text(index)


if __name__ == "__main__":
    main()
