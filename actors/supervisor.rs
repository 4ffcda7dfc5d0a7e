//! Supervisor: keeps the six actors of a node alive, and stops the node in order when it cannot.
//!
//! Hears:   deaths of its children, reports of hung ones, the order to stop.
//! Tells:   RoundClock, which actors have been replaced; the node, with which code to exit.
//! State:   the children; nothing of it survives, a fresh tree is built by the next process.
//! Mailbox: one message a death, and one a second from its own heart-beat.
//!
//! One for one, under one root; started leaf first, stopped in reverse.
//!
//! | child | restart | budget | back-off | rebuilt from |
//! |---|---|---|---|---|
//! | GpuWorker | always | [`RESTARTS_MAX`] within [`BUDGET_WINDOW`] | 50 ms doubling to 2 s, ± 25 % | optimiser section of the last boundary |
//! | Compressor | always | the same | the same | θ and e of the last boundary, and the payload made since |
//! | PeerSync | always | the same | the same | the node's transport, which outlives it |
//! | Gauntlet | always | the same | the same | ratings of the last boundary |
//! | ChainWriter | always | the same | the same | durable intents, checked against the chain |
//! | RoundClock | always | the same | the same | Compressor's position and the chain's head |
//!
//! A child that has lived for [`BUDGET_WINDOW`] starts again with the shortest back-off. A spent budget is an ordered stop
//! with exit code 70: what restarts the process can do better than this tree.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use convoke::terms::Hotkey;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::chain_writer::{self, ChainWriter};
use crate::compressor::{self, Compressor};
use crate::gauntlet::{self, Gauntlet};
use crate::gpu_worker::{self, GpuWorker};
use crate::leaf::{AskError, Hung, Leaf, ask};
use crate::node::Parts;
use crate::peer_sync::{self, PeerSync};
use crate::round_clock::{self, RoundClock};

/// Restarts of one child within [`BUDGET_WINDOW`]; one more stops the node.
pub const RESTARTS_MAX: usize = 5;
/// The span the budget counts in; also how long a child must live for its back-off to start afresh.
pub const BUDGET_WINDOW: Duration = Duration::from_secs(60);
const BACK_OFF_MIN: Duration = Duration::from_millis(50);
const BACK_OFF_MAX: Duration = Duration::from_secs(2);
/// RoundClock has no caller whose deadline could find it hung, so it is asked for a sign of life.
const HEART_BEAT: Duration = Duration::from_secs(1);
const HEART_BEAT_TIMEOUT: Duration = Duration::from_secs(3);
/// Six children within the ten seconds a stop may take.
const STOP_TIMEOUT: Duration = Duration::from_millis(1500);

/// Exit code of a spent budget, for the outside to restart the process (sysexits' EX_SOFTWARE).
pub const EXIT_BUDGET_SPENT: u8 = 70;

/// The five actors that RoundClock asks.
#[derive(Debug, Clone)]
pub struct Leaves {
    /// Inner steps and losses.
    pub gpu_worker: ActorRef<gpu_worker::Msg>,
    /// θ and payloads.
    pub compressor: ActorRef<compressor::Msg>,
    /// Peers.
    pub peer_sync: ActorRef<peer_sync::Msg>,
    /// Checks and ratings.
    pub gauntlet: ActorRef<gauntlet::Msg>,
    /// Seals, votes and weights.
    pub chain_writer: ActorRef<chain_writer::Msg>,
}

/// The root of a node's tree.
#[derive(Debug)]
pub struct Supervisor;

/// What the tree is built from.
pub struct Args {
    /// Everything the actors share.
    pub parts: Arc<Parts>,
    /// Set when the node is to end, with its exit code.
    pub exit: watch::Sender<Option<u8>>,
}

/// The children, by name.
pub struct State {
    parts: Arc<Parts>,
    exit: watch::Sender<Option<u8>>,
    children: BTreeMap<Leaf, Child>,
    refs: Refs,
    stopping: bool,
}

#[derive(Default)]
struct Child {
    cell: Option<ActorCell>,
    started: Option<Instant>,
    restarts: VecDeque<Instant>,
    /// Deaths since the child last lived long enough to be called healthy.
    deaths: u32,
}

#[derive(Default)]
struct Refs {
    gpu_worker: Option<ActorRef<gpu_worker::Msg>>,
    compressor: Option<ActorRef<compressor::Msg>>,
    peer_sync: Option<ActorRef<peer_sync::Msg>>,
    gauntlet: Option<ActorRef<gauntlet::Msg>>,
    chain_writer: Option<ActorRef<chain_writer::Msg>>,
    round_clock: Option<ActorRef<round_clock::Msg>>,
}

/// What the supervisor hears.
#[derive(Debug)]
pub enum Msg {
    /// The back-off of a dead child is over.
    Restart(Leaf),
    /// A child has let a deadline pass.
    Hung(Hung),
    /// Time to ask RoundClock for a sign of life.
    HeartBeat,
    /// End the node in order, with this exit code.
    Stop(u8),
}

impl Actor for Supervisor {
    type Msg = Msg;
    type State = State;
    type Arguments = Args;

    async fn pre_start(&self, me: ActorRef<Msg>, args: Args) -> Result<State, ActorProcessingErr> {
        let mut state = State {
            parts: args.parts,
            exit: args.exit,
            children: BTreeMap::new(),
            refs: Refs::default(),
            stopping: false,
        };
        // RoundClock is started by the last of the others.
        for leaf in Leaf::ALL.into_iter().filter(|leaf| *leaf != Leaf::RoundClock) {
            state.start(leaf, &me).await;
        }
        me.send_interval(HEART_BEAT, || Msg::HeartBeat);
        Ok(state)
    }

    async fn handle(&self, me: ActorRef<Msg>, msg: Msg, state: &mut State) -> Result<(), ActorProcessingErr> {
        match msg {
            Msg::Restart(leaf) => state.start(leaf, &me).await,
            Msg::Hung(hung) => state.kill(&hung),
            Msg::HeartBeat => state.ask_for_sign_of_life(&me),
            Msg::Stop(code) => state.stop(code, &me),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        me: ActorRef<Msg>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(cell, why) => state.child_died(&cell, "panic", &why.to_string(), &me),
            // Nobody but this supervisor ends a child, and it does so only when the child is hung.
            SupervisionEvent::ActorTerminated(cell, _, _) => {
                state.child_died(&cell, "hung", "it was hung and was killed", &me);
            }
            _ => {}
        }
        Ok(())
    }

    async fn post_stop(&self, _: ActorRef<Msg>, state: &mut State) -> Result<(), ActorProcessingErr> {
        state.stopping = true;
        for leaf in Leaf::ALL.into_iter().rev() {
            let Some(cell) = state.children.get_mut(&leaf).and_then(|child| child.cell.take()) else { continue };
            if cell.stop_and_wait(Some("the node stops".to_owned()), Some(STOP_TIMEOUT)).await.is_err() {
                warn!(actor = leaf.name(), "did not stop in time, killed");
                cell.kill();
            }
        }
        Ok(())
    }
}

impl State {
    async fn start(&mut self, leaf: Leaf, me: &ActorRef<Msg>) {
        if self.stopping {
            return;
        }
        match self.spawn(leaf, me).await {
            Ok(cell) => {
                let child = self.children.entry(leaf).or_default();
                child.cell = Some(cell);
                child.started = Some(Instant::now());
                self.parts.journal.actor_up(leaf);
                self.introduce(leaf, me).await;
            }
            Err(error) => self.died(leaf, "start", &format!("could not start: {error}"), me),
        }
    }

    /// No actor is named: ractor's names are the process's, and another node of it, in another thread, may be starting just now.
    async fn spawn(&mut self, leaf: Leaf, me: &ActorRef<Msg>) -> Result<ActorCell, SpawnErr> {
        let (root, parts) = (me.get_cell(), Arc::clone(&self.parts));
        let refs = &mut self.refs;
        Ok(match leaf {
            Leaf::GpuWorker => keep(&mut refs.gpu_worker, Actor::spawn_linked(None, GpuWorker, parts, root).await?.0),
            Leaf::Compressor => keep(&mut refs.compressor, Actor::spawn_linked(None, Compressor, parts, root).await?.0),
            Leaf::PeerSync => keep(&mut refs.peer_sync, Actor::spawn_linked(None, PeerSync, parts, root).await?.0),
            Leaf::Gauntlet => keep(&mut refs.gauntlet, Actor::spawn_linked(None, Gauntlet, parts, root).await?.0),
            Leaf::ChainWriter => {
                keep(&mut refs.chain_writer, Actor::spawn_linked(None, ChainWriter, parts, root).await?.0)
            }
            Leaf::RoundClock => {
                let leaves = refs.leaves().expect("RoundClock is started when all leaves are there");
                let args = round_clock::Args { parts, leaves, supervisor: me.clone() };
                keep(&mut refs.round_clock, Actor::spawn_linked(None, RoundClock, args, root).await?.0)
            }
        })
    }

    /// Tells RoundClock of a new leaf, or starts it when the last leaf it waited for has come.
    async fn introduce(&mut self, leaf: Leaf, me: &ActorRef<Msg>) {
        let Some(leaves) = self.refs.leaves().filter(|_| leaf != Leaf::RoundClock) else { return };
        match &self.refs.round_clock {
            Some(round_clock) => drop(round_clock.cast(round_clock::Msg::Replaced(leaves))),
            None => Box::pin(self.start(Leaf::RoundClock, me)).await,
        }
    }

    fn child_died(&mut self, cell: &ActorCell, kind: &'static str, why: &str, me: &ActorRef<Msg>) {
        let dead =
            self.children.iter().find(|(_, child)| child.cell.as_ref().is_some_and(|it| it.get_id() == cell.get_id()));
        if let Some(leaf) = dead.map(|(leaf, _)| *leaf) {
            self.died(leaf, kind, why, me);
        }
    }

    fn died(&mut self, leaf: Leaf, kind: &'static str, why: &str, me: &ActorRef<Msg>) {
        if self.stopping {
            return;
        }
        let now = Instant::now();
        let child = self.children.entry(leaf).or_default();
        child.cell = None;
        if child.started.take().is_some_and(|started| now - started >= BUDGET_WINDOW) {
            child.deaths = 0;
        }
        child.deaths += 1;
        child.restarts.retain(|restart| now - *restart < BUDGET_WINDOW);
        child.restarts.push_back(now);
        let spent = child.restarts.len();
        let back_off = back_off(leaf, child.deaths, &self.parts.keypair.hotkey());
        self.parts.journal.actor_down(leaf, kind, why, RESTARTS_MAX.saturating_sub(spent));
        if spent > RESTARTS_MAX {
            self.parts.journal.budget_spent(leaf);
            error!(actor = leaf.name(), reason = why, restarts = RESTARTS_MAX, "restart budget spent, the node stops");
            self.stop(EXIT_BUDGET_SPENT, me);
            return;
        }
        warn!(actor = leaf.name(), reason = why, back_off_ms = back_off.as_millis(), "actor died and is restarted");
        me.send_after(back_off, move || Msg::Restart(leaf));
    }

    /// Several questions may have waited for the same hung actor: its successor has nothing to do with them.
    fn kill(&mut self, hung: &Hung) {
        let child = self.children.get(&hung.leaf).and_then(|child| child.cell.as_ref());
        let Some(cell) = child.filter(|cell| cell.get_id() == hung.actor) else { return };
        warn!(actor = hung.leaf.name(), "actor is hung and is killed");
        cell.kill();
        self.parts.journal.actor_hung(hung.leaf, hung.deadline);
    }

    fn ask_for_sign_of_life(&self, me: &ActorRef<Msg>) {
        let Some(round_clock) = self.refs.round_clock.clone() else { return };
        if self.children.get(&Leaf::RoundClock).is_none_or(|child| child.cell.is_none()) {
            return;
        }
        let me = me.clone();
        tokio::spawn(async move {
            let sign = ask(Leaf::RoundClock, &round_clock, HEART_BEAT_TIMEOUT, round_clock::Msg::Ping).await;
            if let Err(AskError::Hung(hung)) = sign {
                drop(me.cast(Msg::Hung(hung)));
            }
        });
    }

    fn stop(&mut self, code: u8, me: &ActorRef<Msg>) {
        if !self.stopping {
            info!(code, "the node stops");
            self.stopping = true;
            self.exit.send_replace(Some(code));
            me.stop(Some("the node stops".to_owned()));
        }
    }
}

impl Refs {
    fn leaves(&self) -> Option<Leaves> {
        Some(Leaves {
            gpu_worker: self.gpu_worker.clone()?,
            compressor: self.compressor.clone()?,
            peer_sync: self.peer_sync.clone()?,
            gauntlet: self.gauntlet.clone()?,
            chain_writer: self.chain_writer.clone()?,
        })
    }
}

fn keep<M>(slot: &mut Option<ActorRef<M>>, actor: ActorRef<M>) -> ActorCell {
    let cell = actor.get_cell();
    *slot = Some(actor);
    cell
}

/// Doubles with every death, with a jitter that differs by node, actor and death but needs no randomness.
fn back_off(leaf: Leaf, deaths: u32, who: &Hotkey) -> Duration {
    let doubled = BACK_OFF_MIN.saturating_mul(1 << deaths.saturating_sub(1).min(10)).min(BACK_OFF_MAX);
    let draw = blake3::hash(format!("{leaf} {deaths} {who}").as_bytes()).as_bytes()[0];
    doubled.mul_f64(0.75 + 0.5 * f64::from(draw) / 255.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_back_off_doubles_within_its_bounds() {
        for leaf in Leaf::ALL {
            for deaths in 1..20 {
                let expected = BACK_OFF_MIN.saturating_mul(1 << (deaths - 1).min(10)).min(BACK_OFF_MAX);
                let actual = back_off(leaf, deaths, &Hotkey([7; 32]));
                assert!(actual >= expected.mul_f64(0.75) && actual <= expected.mul_f64(1.25), "{leaf} {deaths}");
            }
        }
    }

    #[test]
    fn a_node_backs_off_the_same_every_time_and_unlike_others() {
        let of_node = |i: u8| Leaf::ALL.map(|leaf| back_off(leaf, 1, &Hotkey([i; 32])));
        assert_eq!(of_node(1), of_node(1));
        assert_ne!(of_node(1), of_node(2));
    }
}
