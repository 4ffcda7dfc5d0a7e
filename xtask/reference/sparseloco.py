"""Writes tests/golden/sparseloco.txt: what the encoder and the payload must produce, byte for byte.

An independent reading of the formats documented in src/sparseloco/record.rs, levels.rs and src/payload/header.rs, in NumPy
and Python integers: no bit tricks, no streaming, a full sort for the selection. Run it from the repository's root:

    python xtask/reference/sparseloco.py > tests/golden/sparseloco.txt

`payload_goldens.py` makes whole payloads with the same functions. Each line is a name and hexadecimal bytes. BLAKE3 and sr25519 are not in Python's library, so the layout's hash
and the hotkey are inputs, copied from the Rust test that prints them if they differ.
"""

import math
import struct

import numpy as np

F = np.float32
SHAPES = [("w", (70, 65)), ("g", (100,))]
DECAY = F(0.95)
SCALE_TABLE = [F(0)] + [F(np.ldexp(F(2.0 ** ((c - 1) % 8 / 8)), (c - 1) // 8 - 28)) for c in range(1, 256)]
LAYOUT_HASH = "f7e115ed6c9df69b9d068f47d07bff4897c1e1c871cdc7776f1a2393ecfb99c1"
HOTKEY = "7c0f469d3bd340bae718203fa30ca071a5e37c751e891dbded837b213d45d91d"


def noise(i, seed):
    """A 24-bit integer over 2^30, exact in f32, centred on zero."""
    x = (i * 2654435761 + seed * 2246822519) & 0xFFFFFFFF
    x = (x ^ x >> 16) * 2146121005 & 0xFFFFFFFF
    x = (x ^ x >> 15) * 2221713035 & 0xFFFFFFFF
    x ^= x >> 16
    return F(((x >> 8) - (1 << 23)) * 2.0**-30)


def chunks_of(shape):
    """The parameters of each chunk: {position in the chunk: row-major index in the tensor}."""
    if len(shape) == 1:
        return [{p: c + p for p in range(min(4096, shape[0] - c))} for c in range(0, shape[0], 4096)]
    rows, cols = shape
    return [
        {(r - r0) * 64 + (c - c0): r * cols + c for r in range(r0, min(r0 + 64, rows)) for c in range(c0, min(c0 + 64, cols))}
        for r0 in range(0, rows, 64)
        for c0 in range(0, cols, 64)
    ]


def bits_to_bytes(bits, n_bytes):
    return sum(b << i for i, b in enumerate(bits)).to_bytes(n_bytes, "little")


def record(k, positions, codes, scale, quantiser):
    counts = [b for row in range(64) for b in [1] * sum(p // 64 == row for p in positions) + [0]]
    columns = [p % 64 >> b & 1 for p in positions for b in range(6)]
    out = bits_to_bytes(counts, -(-(k + 64) // 8)) + bits_to_bytes(columns, -(-6 * k // 8))
    if quantiser == "sigma-bins":
        return out + bits_to_bytes([c >> b & 1 for c in codes for b in range(2)], -(-2 * k // 8))
    out += bits_to_bytes([c & 1 for c in codes], -(-k // 8))
    if quantiser == "two-bit":
        out += bits_to_bytes([c >> 1 for c in codes], -(-k // 8))
    return out + bytes([scale])


def scale_code(values):
    lanes = [F(0)] * 16
    for i, v in enumerate(values):
        lanes[i % 16] = lanes[i % 16] + abs(v)
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = [a + b for a, b in zip(lanes[:half], lanes[half:])]
    mean = lanes[0] / F(len(values))
    distance = [abs(float(mean) - float(s)) for s in SCALE_TABLE]
    return max(c for c in range(256) if distance[c] == min(distance))


def lloyd(ratios):
    if not ratios:
        return 3932, 4506
    ratios = [float(r) for r in ratios]
    low = high = split = sum(ratios) / len(ratios)
    for _ in range(8):
        below, above = [r for r in ratios if r <= split], [r for r in ratios if r > split]
        if not below or not above:
            break
        low, high = sum(below) / len(below), sum(above) / len(above)
        split = (low + high) / 2
    low = min(max(round(low * 4096), 1), 8 * 4096 - 1)
    return low, min(max(round(high * 4096), low + 1), 8 * 4096)


def sigma_bins(values):
    """Templar's quantiser, from its description: 4 bins over 6 sigma, each decoding to the mean of its members."""
    v = np.array(values, dtype=np.float64)
    shift = F(v.mean())
    c = v - float(shift)
    width = 6 * np.sqrt((c**2).sum() / (len(v) - 1)) / 4 if len(v) > 1 else 0
    width = width or 1
    bins = np.clip(np.rint(c / width + 2), 0, 3).astype(int)
    lookup = [F(c[bins == b].mean()) if (bins == b).any() else F(0) for b in range(4)]
    return shift, lookup, list(bins)


def encode(k, quantiser, shapes, a):
    """Levels and records of all tensors; `a` holds each tensor's row-major accumulated values."""
    levels, records = b"", b""
    for (_, shape), values in zip(shapes, a):
        kept = []
        for chunk in chunks_of(shape):
            order = sorted(chunk, key=lambda p: (-abs(values[chunk[p]]), p))[:k]
            kept.append([(p, values[chunk[p]]) for p in sorted(order)])
        if quantiser == "sigma-bins":
            shift, lookup, bins = sigma_bins([v for chunk in kept for _, v in chunk])
            levels += struct.pack("<5f", shift, *lookup)
            for chunk in kept:
                codes, bins = bins[: len(chunk)], bins[len(chunk) :]
                records += record(k, [p for p, _ in chunk], [int(c) for c in codes], 0, quantiser)
            continue
        if quantiser == "two-bit":
            n_sample = min(16, -(-len(kept) // 8))
            sample = [kept[i * len(kept) // n_sample] for i in range(n_sample)]
            sample = [(SCALE_TABLE[scale_code([v for _, v in c])], c) for c in sample]
            low, high = lloyd([abs(v) / scale for scale, c in sample if scale > 0 for _, v in c])
            levels += struct.pack("<2H", low, high)
        for places, chunk in zip(chunks_of(shape), kept):
            code = scale_code([v for _, v in chunk])
            if code == 0:
                records += record(k, sorted(places)[: len(chunk)], [0] * len(chunk), 0, quantiser)
                continue
            codes = [int(v < 0) for _, v in chunk]
            if quantiser == "two-bit":
                split = (SCALE_TABLE[code] * F(low / 4096) + SCALE_TABLE[code] * F(high / 4096)) / F(2)
                codes = [c | int(abs(v) > split) << 1 for c, (_, v) in zip(codes, chunk)]
            records += record(k, [p for p, _ in chunk], codes, code, quantiser)
    return levels, records


def header(k, quantiser):
    number = {"two-bit": 0, "one-bit": 1, "sigma-bins": 2}[quantiser]
    n_chunks = sum(len(chunks_of(shape)) for _, shape in SHAPES)
    return (
        b"CVPL"
        + struct.pack("<HHBII", 1, k, number, len(SHAPES), n_chunks)
        + bytes([0x11] * 32)
        + struct.pack("<QHI", 7, 3, 30)
        + bytes.fromhex(HOTKEY)
        + bytes([0x22] * 32)
        + bytes.fromhex(LAYOUT_HASH)
    )


def main():
    sizes = [math.prod(shape) for _, shape in SHAPES]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    a = [[DECAY * noise(s + i, 1) + noise(s + i, 2) for i in range(n)] for s, n in zip(starts, sizes)]
    for k in (5, 64):
        for quantiser in ("one-bit", "two-bit", "sigma-bins"):
            levels, records = encode(k, quantiser, SHAPES, a)
            print(f"header-{quantiser}-{k} {header(k, quantiser).hex()}")
            print(f"levels-{quantiser}-{k} {levels.hex() or '-'}")
            print(f"records-{quantiser}-{k} {records.hex()}")


if __name__ == "__main__":
    main()
