//! Whose threads do the work: the protocol cuts work into independent jobs, and the caller brings the threads.
//!
//! Nothing in this package starts a thread, and no result depends on how many there are: a job is a function of its own slices.

/// Threads that jobs may be given to.
pub trait Pool: Sync {
    /// Does `work` for every job and returns when all are done. Jobs are taken one by one, when a thread is free, so that a
    /// long list of them is never made.
    fn for_each<J: Send>(&self, jobs: impl Iterator<Item = J> + Send, work: impl Fn(J) + Sync);
}

/// No threads but the caller's.
#[derive(Debug, Clone, Copy, Default)]
pub struct Inline;

impl Pool for Inline {
    fn for_each<J: Send>(&self, jobs: impl Iterator<Item = J> + Send, work: impl Fn(J) + Sync) {
        jobs.for_each(work);
    }
}
