//! Threads of an actor's own, for the protocol's independent jobs.
//!
//! Its own, because a pool that everybody shares would let one actor's work delay another's, and a thread that dies would be
//! nobody's to restart. A panic in a job reaches the caller when the other threads are done, as if it had done the job itself.

use std::sync::{Mutex, PoisonError};

use convoke::pool::Pool;

/// A fixed number of threads; they end when it is dropped. With none, the caller does the work.
#[derive(Debug)]
pub struct Threads(Option<rayon::ThreadPool>);

impl Threads {
    /// Starts them, named after the actor; at least one.
    ///
    /// # Errors
    /// If the system gives no more threads.
    pub fn start(name: &str, n_threads: usize) -> Result<Self, rayon::ThreadPoolBuildError> {
        let name = name.to_owned();
        let builder = rayon::ThreadPoolBuilder::new().num_threads(n_threads.max(1));
        builder.thread_name(move |i| format!("{name}-{i}")).build().map(|pool| Self(Some(pool)))
    }

    /// No threads.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }
}

impl Pool for Threads {
    fn for_each<J: Send>(&self, jobs: impl Iterator<Item = J> + Send, work: impl Fn(J) + Sync) {
        let Some(pool) = &self.0 else { return jobs.for_each(work) };
        let jobs = Mutex::new(jobs);
        pool.broadcast(|_| {
            // The lock is free again before the work begins.
            while let Some(job) = { jobs.lock().unwrap_or_else(PoisonError::into_inner).next() } {
                work(job);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn every_job_is_done_once_whatever_the_number_of_threads() {
        for n_threads in [0, 1, 2, 7] {
            let pool = if n_threads == 0 { Threads::none() } else { Threads::start("test", n_threads).unwrap() };
            let sum = AtomicU64::new(0);
            pool.for_each(0..1000_u64, |job| {
                sum.fetch_add(job, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 499_500);
        }
    }

    #[test]
    fn a_panic_in_a_job_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Threads::start("test", 2).unwrap();
        let work = || pool.for_each(0..10, |job| assert!(job != 3, "job {job}"));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err());
        pool.for_each(0..10, |_| ());
    }
}
