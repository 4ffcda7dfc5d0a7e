//! How much one peer may ask of this node: a token bucket, with time as an argument.
//!
//! The provider asks for leave before every 16 KiB it sends. A pause for each of these makes a transfer far slower than the rate
//! it was meant to have, because timers are coarser than the pauses; so a bucket lets a burst of at least [`BURST_MIN`] through
//! and then lets the taker run into debt, which it sleeps off in one pause.

use std::time::Duration;

use tokio::time::Instant;

/// The least burst a budget of bytes has: 16 of the provider's 16 KiB groups.
pub const BURST_MIN: u64 = 256 * 1024;

/// A sustained rate and what may be taken at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Units that flow in each second; at least one.
    pub per_second: u64,
    /// Units the bucket holds when full.
    pub burst: u64,
}

/// A token bucket.
#[derive(Debug)]
pub struct Bucket {
    rate: Rate,
    /// Negative: what was taken in advance.
    level: f64,
    at: Instant,
}

impl Bucket {
    /// A full bucket.
    #[must_use]
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, level: rate.burst as f64, at: now }
    }

    /// Takes `amount` and answers how long the taker must wait before it uses it.
    pub fn take(&mut self, amount: u64, now: Instant) -> Duration {
        self.refill(now);
        self.level -= amount as f64;
        Duration::try_from_secs_f64(-self.level / self.flow()).unwrap_or(Duration::ZERO)
    }

    /// Takes `amount` if the bucket holds it, else leaves the bucket as it is.
    #[must_use]
    pub fn try_take(&mut self, amount: u64, now: Instant) -> bool {
        self.refill(now);
        let enough = self.level >= amount as f64;
        if enough {
            self.level -= amount as f64;
        }
        enough
    }

    /// Lets the bucket hold up to `burst`, and fills it with what is added; one that holds more already stays as it is.
    pub fn widen(&mut self, burst: u64) {
        self.level += burst.saturating_sub(self.rate.burst) as f64;
        self.rate.burst = self.rate.burst.max(burst);
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level + elapsed * self.flow()).min(self.rate.burst as f64);
        self.at = self.at.max(now);
    }

    fn flow(&self) -> f64 {
        self.rate.per_second.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_what_follows_waits_for_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Rate { per_second: 1000, burst: 500 }, start);
        assert_eq!(bucket.take(500, start), Duration::ZERO);
        assert_eq!(bucket.take(250, start), Duration::from_millis(250));
        assert_eq!(bucket.take(250, start + Duration::from_millis(250)), Duration::from_millis(250));
    }

    #[test]
    fn an_idle_bucket_never_holds_more_than_its_burst() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Rate { per_second: 10, burst: 3 }, start);
        let later = start + Duration::from_secs(3600);
        assert_eq!((0..5).filter(|_| bucket.try_take(1, later)).count(), 3);
    }

    #[test]
    fn a_widened_bucket_holds_what_was_added_at_once_and_never_narrows() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Rate { per_second: 10, burst: 3 }, start);
        assert!(bucket.try_take(3, start));
        bucket.widen(8);
        bucket.widen(4);
        assert_eq!((0..9).filter(|_| bucket.try_take(1, start)).count(), 5);
        let later = start + Duration::from_secs(3600);
        assert_eq!((0..99).filter(|_| bucket.try_take(1, later)).count(), 8);
    }

    #[test]
    fn a_clock_that_stands_still_or_runs_back_gives_nothing() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Rate { per_second: 10, burst: 1 }, start + Duration::from_secs(1));
        assert!(bucket.try_take(1, start + Duration::from_secs(1)));
        assert!(!bucket.try_take(1, start));
        assert!(!bucket.try_take(1, start + Duration::from_secs(1)));
    }
}
