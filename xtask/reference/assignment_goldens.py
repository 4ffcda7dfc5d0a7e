"""Writes src/assignment/goldens.json: assignments drawn by an independent reading of src/assignment/draw.rs.

Needs the PyPI package `blake3`. Run from the repository root: python xtask/reference/assignment_goldens.py
"""

import json

from blake3 import blake3


def stream(purpose: str, *keys: bytes):
    hasher = blake3(b"".join(keys), derive_key_context=purpose)
    offset = 0
    while True:
        yield int.from_bytes(hasher.digest(8, seek=offset), "little")
        offset += 8


def below(numbers, bound: int) -> int:
    limit = (1 << 64) - (1 << 64) % bound
    return next(number for number in numbers if number < limit) % bound


def assigned(seed: int, hotkey: int, n_samples: int, count: int) -> list[int]:
    numbers = stream("convoke 2026-11 assigned samples v1", bytes([seed]) * 32, bytes([hotkey]) * 32)
    samples: list[int] = []
    while len(samples) < count:
        order = list(range(n_samples))
        for place in range(n_samples):
            if len(samples) == count:
                break
            other = place + below(numbers, n_samples - place)
            order[place], order[other] = order[other], order[place]
            samples.append(order[place])
    return samples


CASES = [(0, 0, 1, 3), (1, 2, 10, 25), (3, 4, 100_000, 40), (255, 7, 1000, 100)]
goldens = [
    {"seed": seed, "hotkey": hotkey, "n_samples": n, "samples": assigned(seed, hotkey, n, count)}
    for seed, hotkey, n, count in CASES
]
with open("src/assignment/goldens.json", "w") as file:
    file.write("[\n" + ",\n".join(json.dumps(golden) for golden in goldens) + "\n]\n")
