//! A node, put together: from its configuration to a running tree of actors, and to its exit code.
//!
//! [`Parts`] is what all actors share and what outlives each of them. Everything that can fail for reasons outside the
//! program fails here, before the first actor starts, with one readable sentence.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use convoke::chain::{self, Place};
use convoke::hotkey::HotkeyPair;
use convoke::round::Schedule;
use convoke::sparseloco::Layout;
use convoke::terms::{Block, EndpointId, Hotkey, Round, RunId};
use dashmap::DashMap;
use ractor::{Actor, ActorRef};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::chain::{ChainRead, ChainWrite};
use crate::chain_writer;
use crate::config::NodeConfig;
use crate::data::Dataset;
use crate::events::{self, Event, Events};
use crate::faults::{Fault, Faults};
use crate::gpu_worker;
use crate::identity::Identity;
use crate::journal::{self, Journal};
use crate::leaf::Leaf;
use crate::membership;
use crate::metrics::{Metrics, NodeFacts, Vocabulary};
use crate::opening::{Anew, Opening};
use crate::peer_sync::net::Nets;
use crate::peer_sync::slot::TransportSlot;
use crate::peer_sync::transport::TransportConfig;
use crate::status::{self, Freshness, StatusBoard};
use crate::store::Store;
use crate::supervisor::{self, Supervisor};
use crate::workbench::Bench;

/// Where peers can be reached, by their endpoint's id; shared by the nodes of one process.
pub type AddressBook = Arc<DashMap<EndpointId, SocketAddr>>;

/// What all actors of a node share.
pub struct Parts {
    /// The node's configuration, the run's shared numbers among it.
    pub config: NodeConfig,
    /// The run's hash.
    pub run_id: RunId,
    /// How θ is cut into chunks.
    pub layout: Layout,
    /// Which block means what.
    pub schedule: Schedule,
    /// What the worker trains with.
    pub trainers: Arc<dyn gpu_worker::Trainers>,
    /// Round-boundary state.
    pub store: Store,
    /// The hotkey.
    pub keypair: HotkeyPair,
    /// Under which this start of the node is known on chain.
    pub identity: chain::Identity,
    /// The chain, to read.
    pub chain: Arc<dyn ChainRead>,
    /// The chain, to write; ChainWriter's alone.
    pub chain_write: Arc<dyn ChainWrite>,
    /// Endpoint and blobs.
    pub transport: Arc<dyn Nets>,
    /// Where peers are.
    pub addresses: AddressBook,
    /// Where everything is told.
    pub journal: Journal,
    /// Faults on purpose.
    pub faults: Arc<Faults>,
    /// Where the actors' heavy work is done.
    pub bench: Bench,
    /// Who opens payloads.
    pub opening: Arc<dyn Opening>,
    /// Leave after this many completed rounds.
    pub rounds: Option<u64>,
    /// What the trained model wrote at the end.
    pub closing_words: Mutex<Option<String>>,
}

/// The chain as one node sees it, and where its peers are.
pub struct Surroundings {
    /// To read.
    pub chain: Arc<dyn ChainRead>,
    /// To write.
    pub chain_write: Arc<dyn ChainWrite>,
    /// Where peers are.
    pub addresses: AddressBook,
}

/// What a node is to do besides running.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Leave after this many completed rounds.
    pub rounds: Option<u64>,
    /// Faults on purpose.
    pub faults: Vec<Fault>,
}

/// A handle that asks a node to end.
#[derive(Clone)]
pub struct Stopper {
    events: Events,
    supervisor: ActorRef<supervisor::Msg>,
}

impl Stopper {
    /// Asks the node to end.
    pub fn stop(&self, reason: &str) {
        self.events.record(None, Event::Stopping { reason: reason.to_owned() });
        drop(self.supervisor.cast(supervisor::Msg::Stop(0)));
    }
}

/// A node that runs.
pub struct Node {
    /// What its actors share.
    pub parts: Arc<Parts>,
    supervisor: ActorRef<supervisor::Msg>,
    tree: JoinHandle<()>,
    exit: watch::Receiver<Option<u8>>,
}

impl Parts {
    /// θ₀, chunk-major: the same on every node, from the run's seed.
    #[must_use]
    pub fn genesis_theta(&self) -> Vec<f32> {
        self.trainers.first_theta(self)
    }

    /// Threads of an actor that computes on the CPU.
    #[must_use]
    pub fn cpu_threads(&self) -> usize {
        match self.config.node.workers {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            n => n,
        }
    }
}

/// A node that has all it needs of this machine, and no chain yet.
pub struct Prepared {
    config: NodeConfig,
    identity: Identity,
    trainers: Arc<dyn gpu_worker::Trainers>,
    run_id: RunId,
    layout: Layout,
    schedule: Schedule,
    store: Store,
    resumed_at: Option<Round>,
}

impl Prepared {
    /// Checks the device, the data and the state of a node.
    ///
    /// # Errors
    /// One readable sentence for whatever is missing.
    pub async fn new(config: NodeConfig, identity: Identity) -> anyhow::Result<Self> {
        // A corpus may take minutes to tokenise, and a device seconds to come up.
        tokio::task::spawn_blocking(move || prepare(config, identity)).await.context("the set-up died")?
    }

    /// Starts the node's actors.
    ///
    /// # Errors
    /// One readable sentence for whatever does not fit together.
    pub async fn start(self, surroundings: Surroundings, plan: Plan) -> anyhow::Result<Node> {
        let resumed_at = self.resumed_at;
        Node::of(Arc::new(assemble(self, surroundings, plan).await?), resumed_at).await
    }
}

impl Node {
    /// Starts the actors of a node that has everything. `resumed_at` is the round of the state it found.
    ///
    /// # Errors
    /// If the supervisor cannot be started.
    pub async fn of(parts: Arc<Parts>, resumed_at: Option<Round>) -> anyhow::Result<Self> {
        parts.journal.events.record(
            resumed_at,
            Event::NodeStarted {
                version: VERSION.to_owned(),
                run_id: parts.run_id,
                role: role_name(&parts.config),
                hotkey: parts.keypair.hotkey(),
                resumed_at,
            },
        );
        let (exit_tx, exit) = watch::channel(None);
        let args = supervisor::Args { parts: Arc::clone(&parts), exit: exit_tx };
        let (supervisor, tree) =
            Actor::spawn(None, Supervisor, args).await.context("the supervisor could not be started")?;
        Ok(Self { parts, supervisor, tree, exit })
    }

    /// Checks everything the node needs and starts its actors.
    ///
    /// # Errors
    /// One readable sentence for whatever is missing.
    pub async fn start(
        config: NodeConfig,
        identity: Identity,
        surroundings: Surroundings,
        plan: Plan,
    ) -> anyhow::Result<Self> {
        Prepared::new(config, identity).await?.start(surroundings, plan).await
    }

    /// Ends the actors where they are, without a last word: what a process that is killed leaves of them. What they have set going
    /// goes on, so that nothing outside may listen to it any more.
    pub fn abandon(self) {
        self.supervisor.kill();
    }

    /// A handle that asks the node to end; [`Node::ended`] tells when it has.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper { events: self.parts.journal.events.clone(), supervisor: self.supervisor.clone() }
    }

    /// Asks the node to end.
    pub fn stop(&self) {
        self.stopper().stop("asked to stop");
    }

    /// Waits until it is decided that the node ends, and answers with which exit code. It may hold more than this node.
    pub fn ending(&self) -> impl Future<Output = u8> + use<> {
        let mut exit = self.exit.clone();
        async move {
            // The tree ends after it has set the code; if it dies without one, the outside must restart it.
            let code = exit.wait_for(Option::is_some).await.map_or(None, |code| *code);
            code.unwrap_or(supervisor::EXIT_BUDGET_SPENT)
        }
    }

    /// Waits until the node has ended in order, and answers its exit code.
    pub async fn ended(self) -> u8 {
        let code = self.ending().await;
        if let Err(error) = self.tree.await {
            tracing::error!(%error, "the tree ended badly");
        }
        self.parts.transport.close().await;
        self.parts.journal.events.record(None, Event::Stopped { exit_code: i32::from(code) });
        let events = self.parts.journal.events.clone();
        // Flushing waits for the disk.
        drop(tokio::task::spawn_blocking(move || events.flush()).await);
        code
    }
}

/// The program's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

fn prepare(config: NodeConfig, identity: Identity) -> anyhow::Result<Prepared> {
    gpu_worker::find(&config.node.device)?;
    let data_dir = &config.node.data_dir;
    make_dir(data_dir)?;
    let run = &config.run;
    let dataset = Dataset::open(&config.data, &run.data, run.model.context_len, run.model.vocab_size, data_dir)?;
    let run_id = run.run_id(&dataset.digest());
    let layout = convoke::genesis::layout(&run.model).context("the model cannot be cut into chunks")?;
    let schedule = Schedule::new(&run.timing);
    let store = Store::open(&data_dir.join("state"), run_id)?;
    let resumed_at = store.latest()?;
    let trainers = Arc::new(gpu_worker::Devices::new(dataset));
    Ok(Prepared { config, identity, trainers, run_id, layout, schedule, store, resumed_at })
}

/// State cannot be ahead of the chain that it came from: such a chain has been replaced or cut off, and the node would
/// wait for it, perhaps for days.
fn check_chain(resumed_at: Option<Round>, head: Block, schedule: &Schedule, data_dir: &Path) -> anyhow::Result<()> {
    let now = schedule.round_of(head);
    let Some(round) = resumed_at.filter(|round| *round > now.next()) else { return Ok(()) };
    let dir = data_dir.display();
    anyhow::bail!(
        "the state in {dir}/state stands at round {round}, but the chain is at block {head}, in round {now}: put the \
         {dir}/chain.redb back that belongs to it, or remove {dir}/state to begin anew on this chain"
    )
}

async fn assemble(prepared: Prepared, surroundings: Surroundings, plan: Plan) -> anyhow::Result<Parts> {
    let Prepared { config, identity: secrets, trainers, run_id, layout, schedule, store, resumed_at } = prepared;
    let Surroundings { chain, chain_write, addresses } = surroundings;
    let data_dir = &config.node.data_dir;
    store.keep_to_chain(chain.genesis())?;
    check_chain(resumed_at, chain.heads().borrow().best.number, &schedule, data_dir)?;
    let mut transport = TransportConfig::new(data_dir.join("blobs"), iroh::SecretKey::from_bytes(&secrets.endpoint));
    transport.bind = config.node.bind;
    let last = chain_writer::last_identity(data_dir, chain.genesis());
    if transport.bind.port() == 0 {
        transport.bind.set_port(port_again(transport.bind, last).unwrap_or(0));
    }
    let transport = Arc::new(TransportSlot::new(transport));
    let identity = match claim_identity(&config, &secrets, &*chain, &transport, &addresses, last).await {
        Ok(identity) => identity,
        Err(error) => {
            transport.close().await;
            return Err(error);
        }
    };
    let journal = open_journal(&config, &secrets, run_id, chain.block_time())?;
    let faults = Arc::new(Faults::new(plan.faults, journal.clone()));
    let place = Place { genesis: chain.genesis(), netuid: chain.netuid() };
    Ok(Parts {
        run_id,
        layout,
        schedule,
        trainers,
        store,
        keypair: secrets.keypair(),
        identity,
        chain,
        chain_write,
        transport,
        addresses,
        journal,
        faults,
        bench: Bench::Thread,
        opening: Arc::new(Anew::new(place)),
        rounds: plan.rounds,
        closing_words: Mutex::new(None),
        config,
    })
}

/// Opens the endpoint, so that a port in use is an error of the start and not of an actor, and takes the hotkey for it.
async fn claim_identity(
    config: &NodeConfig,
    secrets: &Identity,
    chain: &dyn ChainRead,
    slot: &TransportSlot,
    addresses: &AddressBook,
    last: Option<chain::Identity>,
) -> anyhow::Result<chain::Identity> {
    let transport = slot.acquire().await.context("the peer-to-peer endpoint cannot be opened")?;
    addresses.insert(transport.id(), transport.address());
    let address = membership::address_to_announce(config, transport.address());
    membership::claim(chain, &secrets.endpoint, &secrets.keypair().hotkey(), address, last).await
}

/// The port under which this node was known before, if nobody has taken it since: whoever knew it finds it there again.
fn port_again(bind: SocketAddr, last: Option<chain::Identity>) -> Option<u16> {
    let port = last?.address?.port();
    std::net::UdpSocket::bind(SocketAddr::new(bind.ip(), port)).ok().map(|_| port)
}

fn open_journal(
    config: &NodeConfig,
    identity: &Identity,
    run_id: RunId,
    block_time: Duration,
) -> anyhow::Result<Journal> {
    let path = config.node.data_dir.join(events::FILE_NAME);
    let events = Events::open(&path, &config.node.name).with_context(|| format!("cannot write {}", path.display()))?;
    let journal = journal(config, identity.keypair().hotkey(), run_id, block_time, events);
    journal.metrics.watch_disk(&config.node.data_dir);
    journal.metrics.watch_events(&journal.events);
    Ok(journal)
}

/// A journal that nobody has written in.
pub(crate) fn journal(
    config: &NodeConfig,
    hotkey: Hotkey,
    run_id: RunId,
    block_time: Duration,
    events: Events,
) -> Journal {
    let name = &config.node.name;
    let who =
        status::Identity { node: name.clone(), version: VERSION.to_owned(), role: role_name(config), run_id, hotkey };
    let round = block_time.saturating_mul(u32::try_from(config.run.timing.blocks_per_round).unwrap_or(u32::MAX));
    let freshness = Freshness {
        head_age_max: block_time.saturating_mul(HEAD_AGE_MAX_BLOCKS).max(Duration::from_secs(5)),
        round_age_max: round.saturating_mul(2),
    };
    let facts = NodeFacts {
        node: name.clone(),
        version: VERSION.to_owned(),
        role: role_name(config),
        run_id: run_id.short(),
        quantiser: quantiser_name(config),
    };
    let metrics = Metrics::new(&facts, &VOCABULARY);
    for leaf in Leaf::ALL {
        metrics.supervisor.budget_left.with([leaf.name()]).set(supervisor::RESTARTS_MAX as f64);
    }
    Journal { events, status: StatusBoard::new(who, freshness), metrics }
}

/// Blocks without which the chain counts as silent.
const HEAD_AGE_MAX_BLOCKS: u32 = 10;

/// The words that metric labels are taken from.
pub const VOCABULARY: Vocabulary = Vocabulary {
    actors: &Leaf::NAMES,
    restart_reasons: journal::RESTART_REASONS,
    phases: &convoke::round::Phase::NAMES,
    reject_reasons: &convoke::gauntlet::fast_checks::RejectReason::NAMES,
    refuse_reasons: &crate::peer_sync::stats::Refusal::NAMES,
    call_kinds: journal::CALL_KINDS,
};

fn role_name(config: &NodeConfig) -> String {
    config.node.role.name().to_owned()
}

fn quantiser_name(config: &NodeConfig) -> String {
    config.run.sparse.quantiser.name().to_owned()
}

fn make_dir(dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot use the data directory {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_that_is_ahead_of_the_chain_is_refused_with_the_remedy() {
        let schedule = Schedule::new(&crate::config::Layers::default().read().unwrap().run.timing);
        let first = |round| schedule.first_block(Round(round));
        let check = |state: Option<u64>, head| check_chain(state.map(Round), head, &schedule, Path::new("/data"));
        assert!(check(None, Block(0)).is_ok());
        assert!(check(Some(7), first(9)).is_ok());
        // A node stands on the round that comes next.
        assert!(check(Some(7), first(6)).is_ok());
        let refused = check(Some(8), first(6)).unwrap_err().to_string();
        for part in ["round 8", "/data/state", "/data/chain.redb"] {
            assert!(refused.contains(part), "{refused}");
        }
    }
}
