//! Who fetches which piece of a large blob: a queue that holders steal from, without network, store or clock of its own.
//!
//! Bytes nobody fetches yet are runs, from which a piece is cut when a holder is free. So a fast holder takes more pieces than a slow
//! one and no rate need be known in advance; a holder that fails gives what it did not bring back to the queue. Every holder starts
//! with one piece and gets its full width when it has brought one, so asking a holder that has nothing costs one request.
//!
//! At the end the queue is empty while a slow holder still has its last pieces, and everybody would wait for it. Then a holder that is
//! free takes over such a piece too, but only one that has been under way for twice as long as this holder itself takes for a
//! piece: among equal holders nothing is fetched twice.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

use tokio::time::Instant;

use super::fetch::retry_pause;

/// Bytes of a piece: a proof of 20 hashes a piece is nothing, and a holder that dies costs at most this for each stream.
pub const PIECE_BYTES: u64 = 4 * 1024 * 1024;
/// Pieces one holder brings at the same time: with a stream's window of 1 MiB they carry 670 Mbit/s at 50 ms round trip.
pub const HOLDER_WIDTH: usize = 4;
/// Pieces under way in all; each may hold a stream's window and what waits for the store, 2 MiB together.
const FLIGHTS_MAX: usize = 32;
/// Failures in a row, with pauses of 2.5 seconds in all between them, after which nothing is expected of a holder any more: a fetch that
/// has no other holders ends.
pub const FAILURES_MAX: u32 = 6;
/// How long such a holder rests. While others bring the rest, which may take hours, it may come back.
const LONG_REST: Duration = Duration::from_secs(10);
/// How many times as long as its own pieces take must another's piece be under way before a free holder takes it over.
const TAKE_OVER_AFTER: u32 = 2;

/// A number for each piece that was given to a holder, never used twice.
pub type FlightId = u64;

/// One piece to be fetched from one holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    pub flight: FlightId,
    pub holder: usize,
    pub range: Range<u64>,
}

#[derive(Debug)]
struct Flight {
    holder: usize,
    range: Range<u64>,
    since: Instant,
}

#[derive(Debug)]
struct Holder {
    width: usize,
    /// In a row, without a byte that was right.
    failures: u32,
    failed_at: Option<Instant>,
    not_before: Instant,
    is_corrupt: bool,
    /// How long its last piece took.
    pace: Option<Duration>,
}

impl Holder {
    fn is_hopeless(&self) -> bool {
        self.is_corrupt || self.failures >= FAILURES_MAX
    }
}

/// The pieces of one blob, and the holders that bring them.
#[derive(Debug)]
pub struct Pieces {
    missing: VecDeque<Range<u64>>,
    flights: BTreeMap<FlightId, Flight>,
    holders: Vec<Holder>,
    next_flight: FlightId,
}

impl Pieces {
    /// Everything in `missing` is to be brought by `n_holders` holders, numbered from 0, best first.
    pub fn new(missing: impl IntoIterator<Item = Range<u64>>, n_holders: usize, now: Instant) -> Self {
        let holder =
            || Holder { width: 1, failures: 0, failed_at: None, not_before: now, is_corrupt: false, pace: None };
        Self {
            missing: missing.into_iter().filter(|range| !range.is_empty()).collect(),
            flights: BTreeMap::new(),
            holders: std::iter::repeat_with(holder).take(n_holders).collect(),
            next_flight: 0,
        }
    }

    /// What is to be brought after all that was under way has ended: the holders stay as they are known.
    pub fn restart(&mut self, missing: impl IntoIterator<Item = Range<u64>>) {
        self.flights.clear();
        self.missing = missing.into_iter().filter(|range| !range.is_empty()).collect();
    }

    /// Whether everything has been brought.
    pub fn is_done(&self) -> bool {
        self.missing.is_empty() && self.flights.is_empty()
    }

    /// Whether no holder is left of whom anything is to be expected.
    pub fn is_hopeless(&self) -> bool {
        self.holders.iter().all(Holder::is_hopeless)
    }

    /// The holders that sent bytes that were wrong.
    pub fn corrupt(&self) -> impl Iterator<Item = usize> + '_ {
        self.holders.iter().enumerate().filter(|(_, holder)| holder.is_corrupt).map(|(index, _)| index)
    }

    /// The next piece, for the free holder that has least to do. To be asked until it answers `None`.
    pub fn next(&mut self, now: Instant) -> Option<Order> {
        if self.flights.len() >= FLIGHTS_MAX {
            return None;
        }
        let mut free: Vec<usize> = (0..self.holders.len()).filter(|holder| self.is_free(*holder, now)).collect();
        free.sort_by_key(|holder| self.load(*holder));
        let (holder, range) = match self.missing.front_mut() {
            Some(run) => {
                let holder = *free.first()?;
                // Pieces end where a subtree of the hash tree ends, so that their proofs are shortest.
                let end = run.end.min((run.start / PIECE_BYTES + 1) * PIECE_BYTES);
                let range = run.start..end;
                run.start = end;
                if run.is_empty() {
                    self.missing.pop_front();
                }
                (holder, range)
            }
            None => free.into_iter().find_map(|holder| Some((holder, self.slow_piece(holder, now)?)))?,
        };
        let flight = self.next_flight;
        self.next_flight += 1;
        self.flights.insert(flight, Flight { holder, range: range.clone(), since: now });
        Some(Order { flight, holder, range })
    }

    /// When [`Pieces::next`] may have an answer even if nothing ends before.
    pub fn wake_at(&self, now: Instant) -> Option<Instant> {
        let alive = self.holders.iter().enumerate().filter(|(_, holder)| !holder.is_corrupt);
        let rested = alive.clone().map(|(_, holder)| holder.not_before);
        let idle = alive.filter(|(index, _)| self.missing.is_empty() && self.is_free(*index, now));
        let take_over = idle.filter_map(|(index, holder)| {
            let patience = holder.pace? * TAKE_OVER_AFTER;
            self.alone().filter(|flight| flight.holder != index).map(|flight| flight.since + patience).min()
        });
        rested.chain(take_over).filter(|at| *at > now).min()
    }

    /// A piece has come whole. Answers the flights that have become needless by it.
    pub fn landed(&mut self, flight: FlightId, now: Instant) -> Vec<FlightId> {
        let Some(Flight { holder, range, since }) = self.flights.remove(&flight) else { return Vec::new() };
        let holder = &mut self.holders[holder];
        (holder.width, holder.failures, holder.pace) = (HOLDER_WIDTH, 0, Some(now - since));
        let needless: Vec<FlightId> = self.flights_for(&range).collect();
        for flight in &needless {
            self.flights.remove(flight);
        }
        needless
    }

    /// A piece has not come, or only its first `received` bytes. Its holder rests for a while.
    pub fn failed(&mut self, flight: FlightId, received: u64, now: Instant) {
        let Some(Flight { holder, range, since }) = self.flights.remove(&flight) else { return };
        let holder = &mut self.holders[holder];
        // One that brought something is not yet given up on; and what breaks several of its pieces at a time is one failure.
        if received > 0 {
            holder.failures = 0;
        }
        if holder.failed_at.is_none_or(|failed_at| since >= failed_at) {
            let rest = retry_pause(holder.failures);
            holder.failures += 1;
            holder.not_before = now + if holder.is_hopeless() { LONG_REST } else { rest };
            holder.failed_at = Some(now);
        }
        holder.width = 1;
        self.put_back(range.start + received..range.end, &range);
    }

    /// A holder has sent bytes that are wrong: it is not asked again. Answers its other flights, which have ended too.
    pub fn corrupted(&mut self, flight: FlightId, received: u64) -> Vec<FlightId> {
        let Some(Flight { holder, range, .. }) = self.flights.remove(&flight) else { return Vec::new() };
        self.holders[holder].is_corrupt = true;
        self.put_back(range.start + received..range.end, &range);
        let others: Vec<FlightId> =
            self.flights.iter().filter(|(_, flight)| flight.holder == holder).map(|(id, _)| *id).collect();
        for id in &others {
            let flight = self.flights.remove(id).expect("it was found just now");
            self.put_back(flight.range.clone(), &flight.range);
        }
        others
    }

    /// Gives a piece's rest back, unless another holder is bringing the same piece.
    fn put_back(&mut self, rest: Range<u64>, piece: &Range<u64>) {
        // Last: if nobody else has it, its holder brings all the rest before it fails again.
        if !rest.is_empty() && self.flights_for(piece).next().is_none() {
            self.missing.push_back(rest);
        }
    }

    fn flights_for(&self, piece: &Range<u64>) -> impl Iterator<Item = FlightId> {
        self.flights.iter().filter(move |(_, flight)| flight.range == *piece).map(|(id, _)| *id)
    }

    fn load(&self, holder: usize) -> usize {
        self.flights.values().filter(|flight| flight.holder == holder).count()
    }

    fn is_free(&self, index: usize, now: Instant) -> bool {
        let holder = &self.holders[index];
        !holder.is_corrupt && holder.not_before <= now && self.load(index) < holder.width
    }

    /// Flights whose piece nobody else brings.
    fn alone(&self) -> impl Iterator<Item = &Flight> {
        self.flights.values().filter(|flight| self.flights_for(&flight.range).count() == 1)
    }

    /// The piece that a free holder should take over from another, if there is one.
    fn slow_piece(&self, holder: usize, now: Instant) -> Option<Range<u64>> {
        let patience = self.holders[holder].pace? * TAKE_OVER_AFTER;
        let slow = self.alone().filter(|flight| flight.holder != holder && now >= flight.since + patience);
        slow.min_by_key(|flight| flight.since).map(|flight| flight.range.clone())
    }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "a list of runs may hold one")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1024 * 1024;
    const SECOND: Duration = Duration::from_secs(1);

    fn all_next(pieces: &mut Pieces, now: Instant) -> Vec<Order> {
        std::iter::from_fn(|| pieces.next(now)).collect()
    }

    #[test]
    fn a_holder_that_has_brought_a_piece_gets_its_full_width() {
        let now = Instant::now();
        let mut pieces = Pieces::new([0..100 * MIB], 2, now);
        let first = all_next(&mut pieces, now);
        assert_eq!(
            first.iter().map(|order| (order.holder, order.range.clone())).collect::<Vec<_>>(),
            [(0, 0..4 * MIB), (1, 4 * MIB..8 * MIB)]
        );
        assert!(pieces.landed(first[0].flight, now + SECOND).is_empty());
        let second = all_next(&mut pieces, now + SECOND);
        assert!(second.len() == HOLDER_WIDTH && second.iter().all(|order| order.holder == 0));
    }

    #[test]
    fn pieces_end_where_subtrees_end_and_runs_are_not_joined() {
        let now = Instant::now();
        let mut pieces = Pieces::new([3 * MIB..5 * MIB, 7 * MIB..7 * MIB, 9 * MIB..10 * MIB], 3, now);
        let ranges: Vec<_> = all_next(&mut pieces, now).into_iter().map(|order| order.range).collect();
        assert_eq!(ranges, [3 * MIB..4 * MIB, 4 * MIB..5 * MIB, 9 * MIB..10 * MIB]);
    }

    #[test]
    fn what_a_holder_did_not_bring_goes_to_the_others() {
        let now = Instant::now();
        let mut pieces = Pieces::new([0..8 * MIB], 2, now);
        let orders = all_next(&mut pieces, now);
        pieces.failed(orders[0].flight, MIB, now);
        pieces.landed(orders[1].flight, now);
        let rest = all_next(&mut pieces, now);
        assert_eq!(
            rest.iter().map(|order| (order.holder, order.range.clone())).collect::<Vec<_>>(),
            [(1, MIB..4 * MIB)]
        );
        pieces.landed(rest[0].flight, now);
        assert!(pieces.is_done());
    }

    #[test]
    fn a_liar_loses_all_its_pieces_and_gets_no_more() {
        let now = Instant::now();
        let mut pieces = Pieces::new([0..40 * MIB], 1, now);
        let first = all_next(&mut pieces, now);
        pieces.landed(first[0].flight, now);
        let orders = all_next(&mut pieces, now);
        assert_eq!(pieces.corrupted(orders[2].flight, 0).len(), HOLDER_WIDTH - 1);
        assert!(pieces.is_hopeless() && !pieces.is_done());
        assert_eq!(pieces.corrupt().collect::<Vec<_>>(), [0]);
        assert!(all_next(&mut pieces, now + 100 * SECOND).is_empty());
    }

    #[test]
    fn a_last_piece_is_taken_over_from_a_slow_holder_and_the_first_copy_counts() {
        let now = Instant::now();
        let mut pieces = Pieces::new([0..8 * MIB], 2, now);
        let orders = all_next(&mut pieces, now);
        let fast = now + SECOND;
        pieces.landed(orders[0].flight, fast);
        assert!(all_next(&mut pieces, fast).is_empty());
        let due = pieces.wake_at(fast).unwrap();
        assert_eq!(due, now + 2 * SECOND);
        let copies = all_next(&mut pieces, due);
        assert_eq!(
            copies.iter().map(|order| (order.holder, order.range.clone())).collect::<Vec<_>>(),
            [(0, 4 * MIB..8 * MIB)]
        );
        assert!(all_next(&mut pieces, due + 100 * SECOND).is_empty(), "not a third time");
        assert_eq!(pieces.landed(copies[0].flight, due), [orders[1].flight]);
        assert!(pieces.is_done() && pieces.landed(orders[1].flight, due).is_empty());
    }

    #[test]
    fn a_piece_that_two_bring_is_given_back_when_both_have_failed() {
        let now = Instant::now();
        let mut pieces = Pieces::new([0..8 * MIB], 2, now);
        let orders = all_next(&mut pieces, now);
        pieces.landed(orders[0].flight, now + SECOND);
        let copy = all_next(&mut pieces, now + 9 * SECOND).remove(0);
        pieces.failed(orders[1].flight, 0, now + 9 * SECOND);
        assert!(pieces.missing.is_empty());
        pieces.failed(copy.flight, 2 * MIB, now + 9 * SECOND);
        assert_eq!(pieces.missing, [6 * MIB..8 * MIB]);
    }

    #[test]
    fn a_holder_that_only_fails_is_given_up_after_pauses_but_may_come_back() {
        let mut now = Instant::now();
        let mut pieces = Pieces::new([0..8 * MIB], 1, now);
        for _ in 0..FAILURES_MAX {
            assert!(!pieces.is_hopeless());
            let order = all_next(&mut pieces, now).remove(0);
            pieces.failed(order.flight, 0, now);
            assert!(all_next(&mut pieces, now).is_empty(), "it rests");
            now = pieces.wake_at(now).unwrap_or(now);
        }
        assert!(pieces.is_hopeless());
        let order = all_next(&mut pieces, now + LONG_REST).remove(0);
        pieces.landed(order.flight, now + LONG_REST);
        assert!(!pieces.is_hopeless());
    }

    #[test]
    fn a_broken_connection_is_one_failure_however_many_pieces_it_carried() {
        let now = Instant::now();
        let mut pieces = Pieces::new([0..80 * MIB], 1, now);
        let first = all_next(&mut pieces, now).remove(0);
        pieces.landed(first.flight, now);
        for order in all_next(&mut pieces, now) {
            pieces.failed(order.flight, 0, now + SECOND);
        }
        assert_eq!(pieces.holders[0].failures, 1);
    }

    proptest! {
        /// Whatever the holders do, as long as one of them brings what it is asked for, everything comes; nothing is lost, and no
        /// byte that has come is asked for again unless as a copy of a piece under way.
        #[test]
        fn everything_comes_if_one_holder_is_honest(
            runs in prop::collection::vec((0..50u64, 1..50u64), 1..6),
            n_holders in 1..5usize,
            acts in prop::collection::vec((0..4u8, 0..4096u64, 0..1000u64), 1..200),
        ) {
            let mut now = Instant::now();
            let mut at = 0;
            let runs: Vec<Range<u64>> = runs
                .into_iter()
                .map(|(gap, len)| {
                    let start = at + gap * 16_384;
                    at = start + len * 400_000;
                    start..at
                })
                .collect();
            let wanted: u64 = runs.iter().map(|run| run.end - run.start).sum();
            let mut pieces = Pieces::new(runs, n_holders, now);
            let (mut flying, mut brought) = (Vec::<Order>::new(), Vec::<Range<u64>>::new());
            for (act, received, millis) in acts.into_iter().chain(std::iter::repeat((0, 0, 1500))) {
                flying.extend(all_next(&mut pieces, now));
                prop_assert!(flying.len() <= FLIGHTS_MAX);
                for order in &flying {
                    let known = brought.iter().any(|range| range.start < order.range.end && order.range.start < range.end);
                    prop_assert!(!known, "{order:?} has come already");
                }
                if pieces.is_done() {
                    break;
                }
                now += Duration::from_millis(millis);
                if flying.is_empty() {
                    continue;
                }
                let order = flying.remove(usize::try_from(received).unwrap() % flying.len());
                let size = order.range.end - order.range.start;
                // Holder 0 is honest; the others fail half way or lie.
                let ended = match (order.holder, act) {
                    (0, _) | (_, 0) => {
                        brought.push(order.range.clone());
                        pieces.landed(order.flight, now)
                    }
                    (_, 1 | 2) => {
                        let received = received.min(size - 1);
                        let is_alone = !flying.iter().any(|other| other.range == order.range);
                        pieces.failed(order.flight, received, now);
                        if is_alone {
                            brought.push(order.range.start..order.range.start + received);
                        }
                        Vec::new()
                    }
                    _ => pieces.corrupted(order.flight, 0),
                };
                flying.retain(|order| !ended.contains(&order.flight));
                prop_assert!(!pieces.is_hopeless());
            }
            prop_assert_eq!(brought.iter().map(|range| range.end - range.start).sum::<u64>(), wanted);
        }
    }
}
