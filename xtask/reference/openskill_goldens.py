"""Writes src/gauntlet/openskill_goldens.json: seasons rated by the PyPI package `openskill` 6.2.0.

Run from the repository root: python xtask/reference/openskill_goldens.py
"""

import json
import random
from importlib.metadata import version

from openskill.models import PlackettLuce

assert version("openskill") == "6.2.0", version("openskill")


def season(name, matches, start=None, beta=7.0, tau=0.1):
    """`matches` is a list of (players, scores); ratings carry over from one to the next."""
    model = PlackettLuce(beta=beta, tau=tau)
    n_players = 1 + max(max(players) for players, _ in matches)
    start = start or [(25.0, 25.0 / 3.0)] * n_players
    ratings = [model.rating(mu=mu, sigma=sigma) for mu, sigma in start]
    written = []
    for players, scores in matches:
        teams = model.rate([[ratings[player]] for player in players], scores=scores)
        for player, team in zip(players, teams):
            ratings[player] = team[0]
        after = [{"mu": team[0].mu, "sigma": team[0].sigma} for team in teams]
        written.append({"players": players, "scores": scores, "after": after})
    start = [{"mu": mu, "sigma": sigma} for mu, sigma in start]
    return {"name": name, "beta": beta, "tau": tau, "start": start, "matches": written}


def long_season(seed, n_players, n_matches, score):
    """Each round about two thirds play; a fifth of those lose with -99, as absent ones do."""
    draw = random.Random(seed)
    matches = []
    for _ in range(n_matches):
        players = [player for player in range(n_players) if draw.random() < 0.67]
        if len(players) < 2:
            players = [0, n_players - 1]
        scores = [-99.0 if draw.random() < 0.2 else score(draw, player) for player in players]
        matches.append((players, scores))
    return matches


draw = random.Random(7)
spread = [(draw.uniform(0, 50), draw.uniform(0.5, 9)) for _ in range(12)]
SEASONS = [
    season("two players", [([0, 1], [1.0, 0.0])]),
    season("two players tie", [([0, 1], [0.5, 0.5])]),
    season("the worse one wins", [([0, 1], [0.0, 0.1])], start=[(40.0, 2.0), (10.0, 3.0)]),
    season("a tie of unequal players", [([0, 1, 2], [1.0, 1.0, -1.0])], start=[(30.0, 5.0), (20.0, 3.0), (25.0, 8.0)]),
    season("all tie", [(list(range(12)), [-99.0] * 12)], start=spread),
    season("ties at both ends", [(list(range(12)), [2.0, 2.0, 1.0, 0.5, 0.5, 0.5, 0.0, -1.0, -2.0, -99.0, -99.0, -99.0])], start=spread),
    season("forty players", [(list(range(40)), [draw.gauss(0, 0.01) for _ in range(40)])]),
    season("thirty rounds of twelve", long_season(1, 12, 30, lambda d, p: d.gauss(p * 0.002, 0.01))),
    season("twenty rounds with many ties", long_season(2, 9, 20, lambda d, p: float(d.randint(0, 2) + p // 4))),
    season("other settings", long_season(3, 6, 10, lambda d, p: d.gauss(p, 3)), beta=25.0 / 6.0, tau=25.0 / 300.0),
    season("no drift", long_season(4, 5, 10, lambda d, p: d.gauss(p, 3)), tau=0.0),
]
with open("src/gauntlet/openskill_goldens.json", "w") as file:
    file.write("[\n" + ",\n".join(json.dumps(one) for one in SEASONS) + "\n]\n")
