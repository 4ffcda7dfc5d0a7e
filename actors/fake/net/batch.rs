//! Getting blobs from their holders, by the rules of the real fetch (`peer_sync/fetch.rs`), in one task and with few timers.
//!
//! When a request is made, everything about its answer is known: what it is and when it has come. So a batch needs no timer for an
//! answer. It sleeps until somebody is to be asked, or until the last answer has come if that is sooner, and takes whatever has
//! come by then; what is told of each fetch is the time at which its answer came.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use convoke::terms::EndpointId;
use iroh_blobs::Hash;
use tokio::time::{Instant, sleep_until};

use super::{Link, Port, Process, Served};
use crate::pages::Pages;
use crate::peer_sync::fetch::{ADMISSION_PATIENCE, FetchError, Fetched, RETRY_PAUSE_MIN, SizeRule, Want, retry_pause};
use crate::peer_sync::gate::Reveal;
use crate::peer_sync::pieces::FAILURES_MAX;
use crate::peer_sync::stats::add;
use crate::peer_sync::store::{Kind, Label};
use crate::peer_sync::theta::{StateBrought, ThetaWant};
use crate::peer_sync::transport::FetchLimits;

/// What is checked against the hash together; of less than this nothing is left when a transfer is cut off.
const GROUP_BYTES: u64 = 16 * 1024;
const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// Gets many blobs; the answers are in the order of the wants.
pub(super) async fn gather(port: &Port, wants: Vec<Want>, deadline: Instant) -> Vec<Fetched> {
    let mut batch = Batch::new(port, wants, deadline, u32::MAX);
    batch.run().await;
    batch.fetched()
}

/// Gets a state, from one holder after the other until one has brought it whole; the text says why not.
pub(super) async fn bring_state(port: &Port, want: ThetaWant, deadline: Instant) -> Result<StateBrought, String> {
    let ThetaWant { round, digest, n_values, holders } = want;
    let size = (n_values * size_of::<f32>()) as u64;
    let label = Label { round, kind: Kind::State, reveal: Reveal::Always };
    let want = Want { hash: Hash::from_bytes(digest.0), size: SizeRule::Exactly(size), label, holders };
    let mut batch = Batch::new(port, vec![want], deadline, FAILURES_MAX);
    batch.run().await;
    let holders = std::mem::take(&mut batch.searches[0].holders);
    let from: Vec<_> = holders.iter().map(|holder| (holder.id, holder.bytes)).collect();
    let corrupt: Vec<_> = holders.iter().filter(|holder| holder.is_corrupt).map(|holder| holder.id).collect();
    let bytes_fetched: u64 = from.iter().map(|(_, bytes)| bytes).sum();
    let outcome = batch.fetched().swap_remove(0).outcome;
    let bytes = outcome
        .map_err(|error| format!("{error}; {bytes_fetched} of {size} bytes came, {} holders lied", corrupt.len()))?;
    Ok(StateBrought { theta: values(&bytes), bytes_fetched, from, corrupt })
}

/// A state's values, from its bytes.
fn values(bytes: &[u8]) -> Pages {
    let (words, _) = bytes.as_chunks::<4>();
    let mut theta = Pages::zeroed(words.len());
    for (value, word) in theta.iter_mut().zip(words) {
        *value = f32::from_le_bytes(*word);
    }
    theta
}

/// What is looked for together, and what is to happen next.
struct Batch<'a> {
    port: &'a Port,
    started: Instant,
    deadline: Instant,
    /// Failures in a row after which a holder is not asked any more.
    failures_max: u32,
    limits: FetchLimits,
    searches: Vec<Search>,
    /// Which search asks its next holder, and when.
    asks: BTreeSet<(Instant, usize)>,
    /// What is on its way.
    landings: Vec<Landing>,
    /// Until when each sender's link is busy with what it sends to this batch.
    busy: BTreeMap<EndpointId, Instant>,
}

/// One blob that is looked for.
struct Search {
    want: Want,
    holders: Vec<Holder>,
    /// What says most about why it is not here.
    failure: Option<FetchError>,
    /// How much of its front has come from holders that were cut off.
    received: u64,
    end: Option<(Result<Bytes, FetchError>, Duration)>,
}

/// One who may have it.
struct Holder {
    id: EndpointId,
    failures: u32,
    not_before: Instant,
    /// How much has come from it.
    bytes: u64,
    is_corrupt: bool,
}

/// The end of a search, unless its sender dies before it.
struct Landing {
    at: Instant,
    search: usize,
    outcome: Result<Bytes, FetchError>,
    sent: Option<Sent>,
}

/// Where a blob comes from.
struct Sent {
    holder: usize,
    sender: Arc<Process>,
    n_bytes: u64,
    n_copies: u64,
}

/// What becomes of one request, and when.
struct Answer {
    at: Instant,
    outcome: Result<(Bytes, Sent), FetchError>,
}

impl Search {
    fn new(want: Want, now: Instant) -> Self {
        let mut holders: Vec<Holder> = Vec::with_capacity(want.holders.len());
        for id in &want.holders {
            if holders.iter().all(|holder| holder.id != *id) {
                holders.push(Holder { id: *id, failures: 0, not_before: now, bytes: 0, is_corrupt: false });
            }
        }
        Self { want, holders, failure: None, received: 0, end: None }
    }

    /// Those of whom something is still to be expected, best first.
    fn hopeful(&self, failures_max: u32) -> impl Iterator<Item = usize> {
        (0..self.holders.len()).filter(move |idx| {
            let holder = &self.holders[*idx];
            !holder.is_corrupt && holder.failures < failures_max
        })
    }

    /// Who is asked next: of those that may be asked at the same time, the best.
    fn next_holder(&self, failures_max: u32) -> Option<usize> {
        self.hopeful(failures_max).min_by_key(|idx| self.holders[*idx].not_before)
    }

    fn note(&mut self, error: FetchError) {
        if self.failure.as_ref().is_none_or(|failure| error.weight() >= failure.weight()) {
            self.failure = Some(error);
        }
    }
}

impl<'a> Batch<'a> {
    fn new(port: &'a Port, wants: Vec<Want>, deadline: Instant, failures_max: u32) -> Self {
        let now = Instant::now();
        Self {
            port,
            started: now,
            deadline,
            failures_max,
            limits: FetchLimits::default(),
            searches: wants.into_iter().map(|want| Search::new(want, now)).collect(),
            asks: BTreeSet::new(),
            landings: Vec::new(),
            busy: BTreeMap::new(),
        }
    }

    /// Carries all searches to their ends; those without one when it returns were cut off by the end of the process.
    async fn run(&mut self) {
        self.look_at_home();
        while self.port.is_open() {
            let now = Instant::now();
            self.land(now);
            while let Some(due) = self.asks.first().copied().filter(|(at, _)| *at <= now) {
                self.asks.remove(&due);
                self.ask(due.1, now);
            }
            let next_ask = self.asks.first().map(|(at, _)| *at);
            let last_landing = self.landings.iter().map(|landing| landing.at).max();
            let Some(wake_at) = next_ask.into_iter().chain(last_landing).min() else { return };
            if wake_at > now {
                sleep_until(wake_at).await;
            }
        }
    }

    /// What became of each want.
    fn fetched(self) -> Vec<Fetched> {
        let (port, cut_off) = (self.port, self.started.elapsed());
        let fetched = self.searches.into_iter().map(|search| {
            let (outcome, elapsed) = search.end.unwrap_or((Err(FetchError::Closed), cut_off));
            port.process.stats.fetched(elapsed, outcome.as_ref().err());
            Fetched { want: search.want, outcome, elapsed }
        });
        fetched.collect()
    }

    /// The own shelf comes first; for what is not there the holders are asked.
    fn look_at_home(&mut self) {
        for idx in 0..self.searches.len() {
            let Want { hash, size, .. } = self.searches[idx].want;
            match self.port.at_home(|place, _| place.shelf.find(hash.as_bytes()).cloned()) {
                Ok(Some(bytes)) => {
                    let outcome = size.check(bytes.len() as u64).map(|()| bytes);
                    self.landings.push(Landing { at: self.started, search: idx, outcome, sent: None });
                }
                Ok(None) => self.plan(idx, self.started),
                Err(_) => return,
            }
        }
    }

    /// Says when a search that is free from `from` on asks its next holder; or ends it if there is none to ask in time.
    fn plan(&mut self, idx: usize, from: Instant) {
        let search = &self.searches[idx];
        let next = search.next_holder(self.failures_max).map(|next| search.holders[next].not_before);
        let next = next.filter(|not_before| {
            let is_in_time = from < self.deadline && *not_before < self.deadline;
            is_in_time && (*not_before < self.started + ADMISSION_PATIENCE || self.knows_any(search))
        });
        if let Some(not_before) = next {
            self.asks.insert((not_before.max(from), idx));
            return;
        }
        let silent = if from >= self.deadline { FetchError::Deadline } else { FetchError::NotFound };
        let outcome = Err(search.failure.clone().unwrap_or(silent));
        self.landings.push(Landing { at: from, search: idx, outcome, sent: None });
    }

    /// Whether any holder is admitted here.
    fn knows_any(&self, search: &Search) -> bool {
        let admitted = self.port.process.admitted();
        search.hopeful(self.failures_max).any(|idx| admitted.contains(&search.holders[idx].id))
    }

    fn ask(&mut self, idx: usize, now: Instant) {
        let Some(chosen) = self.searches[idx].next_holder(self.failures_max) else { return self.plan(idx, now) };
        let id = self.searches[idx].holders[chosen].id;
        if !self.port.process.admitted().contains(&id) {
            let search = &mut self.searches[idx];
            search.holders[chosen].not_before = now + RETRY_PAUSE_MIN;
            search.note(FetchError::NotFound);
            return self.plan(idx, now);
        }
        let Answer { at, outcome } = self.request(idx, chosen, now);
        match outcome {
            Ok((bytes, sent)) => {
                self.landings.push(Landing { at, search: idx, outcome: Ok(bytes), sent: Some(sent) });
            }
            Err(error) => self.fail(idx, chosen, at, error),
        }
    }

    /// Takes a holder's failure into account.
    fn fail(&mut self, idx: usize, chosen: usize, at: Instant, error: FetchError) {
        // Then the time is over, and this holder has not failed.
        if at >= self.deadline {
            return self.plan(idx, self.deadline);
        }
        if error.is_final() {
            self.landings.push(Landing { at, search: idx, outcome: Err(error), sent: None });
            return;
        }
        let search = &mut self.searches[idx];
        let holder = &mut search.holders[chosen];
        holder.is_corrupt = error == FetchError::Corrupt;
        holder.not_before = at + retry_pause(holder.failures);
        holder.failures += 1;
        search.note(error);
        self.plan(idx, at);
    }

    /// Asks one holder, within its share of the time left.
    fn request(&mut self, idx: usize, chosen: usize, now: Instant) -> Answer {
        let search = &self.searches[idx];
        let (hash, id) = (*search.want.hash.as_bytes(), search.holders[chosen].id);
        let share = u32::try_from(search.hopeful(self.failures_max).count()).unwrap_or(u32::MAX);
        let cut = now + self.deadline.saturating_duration_since(now) / share.max(1);
        let nothing_after =
            |patience: Duration| Answer { at: cut.min(now + patience), outcome: Err(FetchError::Unreachable) };
        let wires = &self.port.wires;
        let me = self.port.process.id;
        let link = wires.links.at(id, me, &hash);
        if !link.is_up {
            return nothing_after(self.limits.connect_timeout);
        }
        let answer_at = now + link.latency;
        if link.is_withheld || link.latency >= self.limits.stall_timeout || answer_at >= cut {
            return nothing_after(self.limits.stall_timeout);
        }
        let Served { bytes, sender } = match wires.ask(id, me, &hash) {
            None => return nothing_after(self.limits.connect_timeout),
            Some(Err(error)) => return Answer { at: answer_at, outcome: Err(error) },
            Some(Ok(served)) => served,
        };
        if let Err(error) = search.want.size.check(bytes.len() as u64) {
            return Answer { at: answer_at, outcome: Err(error) };
        }
        let kept = bytes.as_ptr();
        let bytes = self.as_sent(&link, id, &search.want, bytes);
        let n_bytes = (bytes.len() as u64).saturating_sub(search.received);
        let sent = Sent { holder: chosen, sender, n_bytes, n_copies: 1 + u64::from(link.repeats) };
        // What lies on a shelf has the hash under which it lies.
        let is_right = bytes.as_ptr() == kept || *blake3::hash(&bytes).as_bytes() == hash;
        let begun = self.busy.get(&id).map_or(answer_at, |busy| answer_at.max(*busy));
        let (done, got) = match link.bytes_per_second {
            None => (answer_at, n_bytes),
            Some(rate) => carried(n_bytes, rate, begun, cut),
        };
        if link.bytes_per_second.is_some() {
            let busy = self.busy.entry(id).or_insert(done);
            *busy = done.max(*busy);
        }
        match (is_right, got == n_bytes) {
            (true, true) => Answer { at: done, outcome: Ok((bytes, sent)) },
            (true, false) => {
                self.receive(idx, &Sent { n_bytes: got, ..sent }, true);
                Answer { at: done, outcome: Err(FetchError::Unreachable) }
            }
            (false, is_whole) => {
                sent.sender.has_sent(got * sent.n_copies);
                let error = if is_whole { FetchError::Corrupt } else { FetchError::Unreachable };
                Answer { at: done, outcome: Err(error) }
            }
        }
    }

    /// What a holder sends for what it holds.
    fn as_sent(&self, link: &Link, holder: EndpointId, want: &Want, bytes: Bytes) -> Bytes {
        if link.is_lying && want.label.kind == Kind::State {
            let other = self.port.wires.other_state(holder, want.hash.as_bytes());
            return other.unwrap_or_else(|| corrupted(&bytes));
        }
        if link.is_corrupt { corrupted(&bytes) } else { bytes }
    }

    /// Counts what has come of a blob that is what was wanted.
    fn receive(&mut self, idx: usize, sent: &Sent, is_cut_off: bool) {
        let search = &mut self.searches[idx];
        let holder = &mut search.holders[sent.holder];
        holder.bytes += sent.n_bytes;
        if is_cut_off && sent.n_bytes > 0 {
            search.received += sent.n_bytes;
            // One that brought something is not yet given up on.
            holder.failures = 0;
        }
        let stats = &self.port.process.stats;
        add(&stats.bytes_down, sent.n_bytes * sent.n_copies);
        if search.want.label.kind == Kind::State {
            add(&stats.state_bytes_down, sent.n_bytes * sent.n_copies);
        }
        sent.sender.has_sent(sent.n_bytes * sent.n_copies);
    }

    /// Takes what has come by now.
    fn land(&mut self, now: Instant) {
        let all = std::mem::take(&mut self.landings).into_iter();
        let (landed, later): (Vec<_>, Vec<_>) = all.partition(|landing| landing.at <= now);
        self.landings = later;
        for landing in landed {
            self.take(landing, now);
        }
    }

    fn take(&mut self, landing: Landing, now: Instant) {
        let Landing { at, search: idx, outcome, sent } = landing;
        if let Some(sent) = sent {
            if !self.port.wires.is_open(&sent.sender) {
                return self.fail(idx, sent.holder, now, FetchError::Unreachable);
            }
            self.receive(idx, &sent, false);
        }
        let Want { hash, label, .. } = self.searches[idx].want;
        let kept = outcome.and_then(|bytes| match self.port.keep(*hash.as_bytes(), &bytes, label) {
            Ok(()) => Ok(bytes),
            Err(_) => Err(FetchError::Closed),
        });
        self.searches[idx].end = Some((kept, at.saturating_duration_since(self.started)));
    }
}

/// The same bytes with another bit, or one byte too many where there are none.
fn corrupted(bytes: &[u8]) -> Bytes {
    let mut other = bytes.to_vec();
    match other.get_mut(bytes.len() / 2) {
        Some(byte) => *byte ^= 1,
        None => other.push(1),
    }
    other.into()
}

/// When a transfer ends that begins at `begun` and is cut off at `cut`, and how many of its bytes have come by then.
fn carried(n_bytes: u64, rate: u64, begun: Instant, cut: Instant) -> (Instant, u64) {
    let rate = u128::from(rate.max(1));
    let nanos = u128::from(n_bytes) * NANOS_PER_SECOND / rate;
    let left = cut.saturating_duration_since(begun);
    if nanos < left.as_nanos() {
        return (begun + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)), n_bytes);
    }
    let groups = u64::try_from(left.as_nanos() * rate / NANOS_PER_SECOND).unwrap_or(u64::MAX) / GROUP_BYTES;
    // What would be whole at the very moment of the cut comes too late.
    (cut, (groups * GROUP_BYTES).min(n_bytes.saturating_sub(1)))
}
