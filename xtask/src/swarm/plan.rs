//! What a swarm shall do, read from the command line before anything is started.
//!
//! The run's timing is not repeated here: it comes from `configs/default.toml` with the same `--set` laid over it that
//! the nodes are given, so that the swarm and its nodes cannot mean different rounds.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use toml::{Table, Value};

/// Slots of a subnet, less the one of the subnet's owner.
const NODES_MAX: usize = 255;
const ROUNDS_DEFAULT: u64 = 10;
/// What a chain takes as `--block-ms`.
const BLOCK_MS: std::ops::RangeInclusive<u64> = 10..=600_000;
/// Set by the swarm for each node, with where to say it instead.
const OWN_KEYS: [(&str, &str); 7] = [
    ("node.role", "--miners and --validators"),
    ("node.name", "--miners and --validators"),
    ("node.data_dir", "--data-dir"),
    ("node.hotkey", "nothing: each node has its own"),
    ("node.http", "nothing: each node gets a free port"),
    ("chain.url", "nothing: the swarm serves its own chain"),
    ("chain.block_ms", "--block-ms"),
];

/// What a process of the swarm is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Chain,
    Validator,
    Miner,
}

/// A process of the swarm. Everywhere else a member is its index in [`Plan::members`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub name: String,
    pub role: Role,
}

/// When a killed member is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Return {
    /// So many rounds after it was killed.
    After(u64),
    Never,
}

/// One `--kill`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kill {
    /// Index of the member.
    pub member: usize,
    /// Counted from the first round of the swarm.
    pub round: u64,
    pub back: Return,
}

/// The run's clock, as far as the swarm must know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    pub block_ms: u64,
    pub blocks_per_round: u64,
    pub finality_depth: u64,
    pub netuid: u64,
}

impl Timing {
    /// How long a round takes while the chain makes its blocks in time.
    pub fn round_time(&self) -> Duration {
        Duration::from_millis(self.block_ms.saturating_mul(self.blocks_per_round))
    }
}

/// Everything the command line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The chain, then the validators, then the miners.
    pub members: Vec<Member>,
    /// Rounds from the first one seen until the swarm is stopped.
    pub rounds: u64,
    pub kills: Vec<Kill>,
    /// None: the usual place.
    pub data_dir: Option<PathBuf>,
    /// The node's, for cargo.
    pub features: Option<String>,
    /// Passed on to every node.
    pub sets: Vec<String>,
    pub timing: Timing,
}

impl Plan {
    /// Reads the arguments; `defaults` are the text of `configs/default.toml`.
    pub fn read(arguments: &[String], defaults: &str) -> Result<Self> {
        let said = Said::read(arguments)?;
        let n_miners = said.miners.context("--miners is missing: say how many nodes train")?;
        let n_validators = said.validators.context("--validators is missing: say how many nodes score")?;
        ensure!(n_validators > 0, "--validators is 0: without a validator no round has a manifest");
        ensure!(
            n_miners.saturating_add(n_validators) <= NODES_MAX,
            "{n_miners} miners and {n_validators} validators: a subnet has room for {NODES_MAX}"
        );
        let rounds = said.rounds.unwrap_or(ROUNDS_DEFAULT);
        ensure!(rounds > 0, "--rounds is 0: a swarm without a round shows nothing");
        let mut members = vec![Member { name: "chain".to_owned(), role: Role::Chain }];
        let named = |word: &'static str, role, n| (1..=n).map(move |i| Member { name: format!("{word}-{i}"), role });
        members.extend(named("validator", Role::Validator, n_validators));
        members.extend(named("miner", Role::Miner, n_miners));
        let mut kills = said.kills.iter().map(|spec| Kill::read(spec, &members)).collect::<Result<Vec<_>>>()?;
        check_kills(&mut kills, rounds, &members)?;
        let timing = timing(defaults, &said.sets, said.block_ms)?;
        let Said { data_dir, features, sets, .. } = said;
        Ok(Self { members, rounds, kills, data_dir, features, sets, timing })
    }

    /// The members that are nodes, with their indices.
    pub fn nodes(&self) -> impl Iterator<Item = (usize, &Member)> {
        self.members.iter().enumerate().filter(|(_, member)| member.role != Role::Chain)
    }

    /// What a member's process is started with: `listen` is its own address, `chain` the chain's.
    pub fn arguments(&self, member: &Member, dir: &str, listen: SocketAddr, chain: SocketAddr) -> Vec<String> {
        let Timing { block_ms, finality_depth, netuid, .. } = self.timing;
        let data_dir = format!("{dir}/{}", member.name);
        let role = match member.role {
            Role::Chain => {
                let words = ["chain", "--listen", &listen.to_string(), "--data-dir", &data_dir].map(str::to_owned);
                let numbers = [("--block-ms", block_ms), ("--finality-depth", finality_depth), ("--netuid", netuid)];
                let numbers = numbers.iter().flat_map(|(flag, number)| [(*flag).to_owned(), number.to_string()]);
                return words.into_iter().chain(numbers).collect();
            }
            Role::Validator => "validator",
            Role::Miner => "miner",
        };
        let (chain, http) = (format!("ws://{chain}"), listen.to_string());
        let words = ["run", "--role", role, "--name", &member.name, "--data-dir", &data_dir];
        let words = words.into_iter().chain(["--chain", &chain, "--http", &http]);
        // Many nodes share this machine's cores; whoever wants more threads for each says so in a later --set.
        let sets = ["node.workers=1"].into_iter().chain(self.sets.iter().map(String::as_str));
        words.chain(sets.flat_map(|set| ["--set", set])).map(str::to_owned).collect()
    }
}

/// The arguments, before they are held against each other.
#[derive(Default)]
struct Said {
    miners: Option<usize>,
    validators: Option<usize>,
    rounds: Option<u64>,
    block_ms: Option<u64>,
    data_dir: Option<PathBuf>,
    features: Option<String>,
    kills: Vec<String>,
    sets: Vec<String>,
}

impl Said {
    fn read(arguments: &[String]) -> Result<Self> {
        let mut said = Self::default();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let (flag, value) = match argument.split_once('=') {
                Some((flag, value)) if flag.starts_with("--") => (flag, Some(value.to_owned())),
                _ => (argument.as_str(), None),
            };
            let known = ["miners", "validators", "rounds", "block-ms", "data-dir", "features", "kill", "set"];
            if !flag.strip_prefix("--").is_some_and(|name| known.contains(&name)) {
                bail!("`{argument}` is no argument of a swarm");
            }
            let value = value.or_else(|| arguments.next().cloned()).with_context(|| format!("{flag} takes a value"))?;
            match flag {
                "--miners" => said.miners = Some(number(flag, &value)?),
                "--validators" => said.validators = Some(number(flag, &value)?),
                "--rounds" => said.rounds = Some(number(flag, &value)?),
                "--block-ms" => said.block_ms = Some(number(flag, &value)?),
                "--data-dir" => said.data_dir = Some(value.into()),
                "--features" => said.features = Some(value),
                "--kill" => said.kills.push(value),
                _ => said.sets.push(value),
            }
        }
        Ok(said)
    }
}

fn number<T: std::str::FromStr>(flag: &str, value: &str) -> Result<T> {
    value.parse().ok().with_context(|| format!("{flag} is `{value}`: write a whole number"))
}

impl Kill {
    /// Reads `NAME@ROUND[+BACK]`.
    fn read(spec: &str, members: &[Member]) -> Result<Self> {
        let form = || format!("--kill {spec}: write NAME@ROUND, NAME@ROUND+ROUNDS or NAME@ROUND+never");
        let (name, rest) = spec.split_once('@').with_context(form)?;
        let (round, back) = rest.split_once('+').map_or((rest, "0"), |(round, back)| (round, back));
        let round = round.parse().ok().with_context(form)?;
        let back = match back {
            "never" => Return::Never,
            rounds => Return::After(rounds.parse().ok().with_context(form)?),
        };
        let Some(member) = members.iter().position(|member| member.name == name) else {
            let names: Vec<_> = members.iter().map(|member| member.name.as_str()).collect();
            bail!("--kill {spec}: there is no `{name}` in this swarm: choose one of {}", names.join(", "));
        };
        Ok(Self { member, round, back })
    }
}

/// Refuses kills that could not be carried out as they are written.
fn check_kills(kills: &mut [Kill], rounds: u64, members: &[Member]) -> Result<()> {
    kills.sort_by_key(|kill| (kill.member, kill.round));
    for (idx, kill) in kills.iter().enumerate() {
        let name = &members[kill.member].name;
        let back = match kill.back {
            Return::After(back) => Some(kill.round.saturating_add(back)),
            Return::Never => None,
        };
        let last = rounds - 1;
        if back.unwrap_or(kill.round) > last {
            bail!("--kill {name}@{}: killed or back after round {last}, the last one: give more --rounds", kill.round);
        }
        if members[kill.member].role == Role::Chain && kill.back != Return::After(0) {
            bail!(
                "--kill {name}@{}: without the chain no round passes, so it is back at once or not at all",
                kill.round
            );
        }
        let next = kills.get(idx + 1).filter(|next| next.member == kill.member);
        if let Some(next) = next.filter(|next| back.is_none_or(|back| next.round <= back)) {
            bail!("--kill {name}@{}: it is not back by then from being killed in round {}", next.round, kill.round);
        }
    }
    if members.iter().enumerate().all(|(idx, member)| {
        let gone = kills.iter().any(|kill| kill.member == idx && kill.back == Return::Never);
        gone || member.role == Role::Chain
    }) {
        bail!("every node is killed for good: nobody is left to complete the rounds");
    }
    Ok(())
}

fn timing(defaults: &str, sets: &[String], block_ms: Option<u64>) -> Result<Timing> {
    let defaults: Table = defaults.parse().context("configs/default.toml is not valid TOML")?;
    let mut assignments = Vec::new();
    for set in sets {
        let (key, value) = set.split_once('=').with_context(|| format!("--set {set}: write key=value"))?;
        let (key, value) = (key.trim(), value.trim());
        if let Some((_, instead)) = OWN_KEYS.iter().find(|(own, _)| *own == key) {
            bail!("--set {set}: the swarm sets `{key}` for each node; say {instead}");
        }
        assignments.push((key, value));
    }
    let read = |key: &str| -> Result<u64> {
        // The last one wins, as in the node.
        if let Some((_, value)) = assignments.iter().rev().find(|(set, _)| *set == key) {
            return value.parse().ok().with_context(|| format!("--set {key}={value}: write a whole number"));
        }
        let value = key.split('.').try_fold(&Value::Table(defaults.clone()), |value, part| value.get(part)).cloned();
        let value = value.as_ref().and_then(Value::as_integer).and_then(|value| u64::try_from(value).ok());
        value.with_context(|| format!("configs/default.toml says no number for `{key}`"))
    };
    let block_ms = block_ms.map_or_else(|| read("chain.block_ms"), Ok)?;
    ensure!(BLOCK_MS.contains(&block_ms), "--block-ms is {block_ms}: from {} to {}", BLOCK_MS.start(), BLOCK_MS.end());
    let blocks_per_round = read("run.timing.blocks_per_round")?;
    let finality_depth = read("run.timing.finality_depth")?;
    Ok(Timing { block_ms, blocks_per_round, finality_depth, netuid: read("run.netuid")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULTS: &str = include_str!("../../../configs/default.toml");

    fn read(line: &str) -> Result<Plan> {
        Plan::read(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>(), DEFAULTS)
    }

    /// The message must hold all of `wanted`.
    fn check_refused(line: &str, wanted: &[&str]) {
        let message = format!("{:#}", read(line).unwrap_err());
        for part in wanted {
            assert!(message.contains(part), "{line}: {message:?} lacks {part:?}");
        }
    }

    #[test]
    fn a_short_line_is_ten_rounds_of_the_default_run() {
        let plan = read("--miners 2 --validators 1").unwrap();
        let names: Vec<_> = plan.members.iter().map(|member| member.name.as_str()).collect();
        assert_eq!(names, ["chain", "validator-1", "miner-1", "miner-2"]);
        assert_eq!((plan.rounds, plan.kills.len(), plan.data_dir, plan.features), (10, 0, None, None));
        assert_eq!(plan.timing, Timing { block_ms: 500, blocks_per_round: 30, finality_depth: 2, netuid: 3 });
        assert_eq!(plan.timing.round_time(), Duration::from_secs(15));
    }

    #[test]
    fn the_swarm_and_its_nodes_mean_the_same_rounds() {
        let plan = read(concat!(
            "--miners=1 --validators=1 --rounds=4 --block-ms 100 --set run.timing.blocks_per_round=12 ",
            "--set=run.netuid=7 --set run.timing.blocks_per_round=8 --data-dir /x --features cuda"
        ))
        .unwrap();
        assert_eq!(plan.timing, Timing { block_ms: 100, blocks_per_round: 8, finality_depth: 2, netuid: 7 });
        assert_eq!((plan.data_dir, plan.features.as_deref()), (Some("/x".into()), Some("cuda")));
        assert_eq!(plan.sets.len(), 3);
    }

    #[test]
    fn members_are_started_as_a_user_would_start_them() {
        let plan = read("--miners 1 --validators 1 --set run.inner.steps=3 --block-ms 200").unwrap();
        let [chain, own] = ["127.0.0.1:9000", "127.0.0.1:9001"].map(|address| address.parse().unwrap());
        let line = |member: usize, listen| plan.arguments(&plan.members[member], "/d", listen, chain).join(" ");
        assert_eq!(
            line(0, chain),
            "chain --listen 127.0.0.1:9000 --data-dir /d/chain --block-ms 200 --finality-depth 2 --netuid 3"
        );
        assert_eq!(
            line(2, own),
            "run --role miner --name miner-1 --data-dir /d/miner-1 --chain ws://127.0.0.1:9000 --http 127.0.0.1:9001 \
             --set node.workers=1 --set run.inner.steps=3"
        );
        assert!(line(1, own).starts_with("run --role validator --name validator-1 "));
    }

    #[test]
    fn a_kill_says_who_when_and_for_how_long() {
        let plan =
            read("--miners 2 --validators 1 --kill miner-2@3+2 --kill miner-1@1 --kill chain@4 --kill miner-2@7+never");
        let kill = |member, round, back| Kill { member, round, back };
        assert_eq!(
            plan.unwrap().kills,
            [
                kill(0, 4, Return::After(0)),
                kill(2, 1, Return::After(0)),
                kill(3, 3, Return::After(2)),
                kill(3, 7, Return::Never)
            ]
        );
    }

    #[test]
    fn kills_that_cannot_be_carried_out_are_refused() {
        let check = |kills: &str, wanted: &[&str]| {
            check_refused(&format!("--miners 1 --validators 1 {kills}"), wanted);
        };
        check("--kill miner-1", &["NAME@ROUND"]);
        check("--kill miner-1@", &["NAME@ROUND"]);
        check("--kill miner-1@2+soon", &["NAME@ROUND+never"]);
        check("--kill miner-2@2", &["no `miner-2`", "chain, validator-1, miner-1"]);
        check("--kill miner-1@10", &["after round 9"]);
        check("--kill miner-1@8+2", &["after round 9"]);
        check("--kill chain@2+1", &["without the chain"]);
        check("--kill miner-1@2+3 --kill miner-1@5", &["miner-1@5", "round 2"]);
        check("--kill miner-1@2+never --kill miner-1@5", &["miner-1@5", "round 2"]);
        check("--kill miner-1@2+never --kill validator-1@5+never", &["every node"]);
    }

    #[test]
    fn a_wrong_line_is_refused_with_what_would_be_right() {
        check_refused("", &["--miners"]);
        check_refused("--miners 1", &["--validators"]);
        check_refused("--miners 1 --validators 0", &["manifest"]);
        check_refused("--miners 250 --validators 9", &["255"]);
        check_refused("--miners -1 --validators 1", &["whole number"]);
        check_refused("--miners 1 --validators 1 --rounds 0", &["--rounds"]);
        check_refused("--miners 1 --validators 1 --rounds", &["takes a value"]);
        check_refused("--miners 1 --validators 1 --seed 3", &["`--seed`"]);
        check_refused("--miners 1 --validators 1 extra", &["`extra`"]);
        check_refused("--miners 1 --validators 1 --block-ms 1", &["10", "600000"]);
        check_refused("--miners 1 --validators 1 --set node.name=x", &["`node.name`"]);
        check_refused("--miners 1 --validators 1 --set chain.block_ms=9", &["--block-ms"]);
        check_refused("--miners 1 --validators 1 --set run.netuid=x", &["whole number"]);
        check_refused("--miners 1 --validators 1 --set x", &["key=value"]);
    }
}
