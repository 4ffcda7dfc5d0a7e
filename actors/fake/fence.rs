//! Around one life of a simulated node: what is behind it ends with the process.
//!
//! A process that is killed takes all its tasks with it; the tasks of a simulated one go on until they next want something. So
//! whatever a life has of the world looks at its fence first, and behind a fallen one there is nothing any more.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A fence; what is cloned is the same fence.
#[derive(Debug, Clone, Default)]
pub struct Fence(Arc<AtomicBool>);

impl Fence {
    /// A fence that stands.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The process dies. No fence stands up again: the next life has its own.
    pub fn fall(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the process is dead.
    #[must_use]
    pub fn has_fallen(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// For those that answer as the operating system does.
    ///
    /// # Errors
    /// [`io::ErrorKind::BrokenPipe`] once the process is dead.
    pub fn check(&self) -> io::Result<()> {
        if self.has_fallen() { Err(io::Error::new(io::ErrorKind::BrokenPipe, "the process is dead")) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_falls_for_all_who_hold_it_and_for_nobody_else() {
        let (fence, other) = (Fence::new(), Fence::new());
        let held = fence.clone();
        assert!(held.check().is_ok());
        fence.fall();
        assert!(held.has_fallen());
        assert_eq!(held.check().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert!(!other.has_fallen());
    }
}
