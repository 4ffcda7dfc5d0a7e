//! Where the chain stands, told to everybody who waits for it, in the order in which they began to wait.
//!
//! It is `tokio::sync::watch` for [`Heads`] but for that order: there, those who wait are woken in one that is drawn at
//! random, and two runs of the same nodes in virtual time would differ by it.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::Heads;

/// Nobody tells of the heads any more: the chain, or the connection to it, is gone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("nobody tells of the chain's heads any more")]
pub struct Closed;

/// Who tells of the heads. There is one of a chain; when it is dropped its readers are closed.
#[derive(Debug)]
pub struct HeadWatch {
    shared: Arc<Shared>,
}

/// Who reads the heads. Each reader, a clone too, knows by itself what it has seen.
#[derive(Debug, Clone)]
pub struct HeadReader {
    shared: Arc<Shared>,
    /// The [`Told::version`] that was seen last.
    seen: u64,
}

#[derive(Debug)]
struct Shared {
    told: Mutex<Told>,
    /// Wakes all who wait; it keeps them in a queue.
    news: Notify,
}

#[derive(Debug, Clone, Copy)]
struct Told {
    heads: Heads,
    /// How often heads were sent.
    version: u64,
    is_closed: bool,
}

impl Shared {
    /// A panic elsewhere cannot leave half of something here: heads are put in whole.
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HeadWatch {
    /// Tells of these heads first.
    #[must_use]
    pub fn new(heads: Heads) -> Self {
        let told = Mutex::new(Told { heads, version: 0, is_closed: false });
        Self { shared: Arc::new(Shared { told, news: Notify::new() }) }
    }

    /// The heads as they were told last.
    #[must_use]
    pub fn borrow(&self) -> Heads {
        self.shared.told().heads
    }

    /// A reader that has seen what was told so far.
    #[must_use]
    pub fn subscribe(&self) -> HeadReader {
        HeadReader { shared: Arc::clone(&self.shared), seen: self.shared.told().version }
    }

    /// Tells of these heads, also if they are the ones that were told last.
    pub fn send_replace(&self, heads: Heads) {
        self.send_if_modified(|told| {
            *told = heads;
            true
        });
    }

    /// Lets `modify` change the heads, and tells of them if it answers that it did; its answer is also this one's.
    /// `modify` must not ask anything of this watch or its readers.
    pub fn send_if_modified(&self, modify: impl FnOnce(&mut Heads) -> bool) -> bool {
        let mut told = self.shared.told();
        let mut heads = told.heads;
        if !modify(&mut heads) {
            return false;
        }
        told.heads = heads;
        told.version += 1;
        drop(told);
        self.shared.news.notify_waiters();
        true
    }
}

impl Drop for HeadWatch {
    fn drop(&mut self) {
        self.shared.told().is_closed = true;
        self.shared.news.notify_waiters();
    }
}

impl HeadReader {
    /// The heads as they were told last; they do not count as seen by it.
    #[must_use]
    pub fn borrow(&self) -> Heads {
        self.shared.told().heads
    }

    /// The heads as they were told last, which are seen now: [`Self::changed`] waits for others.
    pub fn borrow_and_update(&mut self) -> Heads {
        let told = *self.shared.told();
        self.seen = told.version;
        told.heads
    }

    /// Waits for heads that this reader has not seen, also such that were told before it was called, and counts them as
    /// seen. It may be given up at any time without missing any.
    ///
    /// # Errors
    /// All heads are seen, and there will be no others.
    pub async fn changed(&mut self) -> Result<(), Closed> {
        let seen = self.seen;
        self.until(|told| told.version != seen).await.map(|_| ())
    }

    /// Waits until the heads are as asked, which they may be from the start. It may skip some.
    ///
    /// # Errors
    /// The last heads are not as asked, and there will be no others.
    pub async fn wait_for(&mut self, mut is_so: impl FnMut(&Heads) -> bool) -> Result<Heads, Closed> {
        self.until(|told| is_so(&told.heads)).await
    }

    async fn until(&mut self, mut is_so: impl FnMut(&Told) -> bool) -> Result<Heads, Closed> {
        loop {
            // In the queue before it looks, so that nothing is told between the look and the wait.
            let mut news = pin!(self.shared.news.notified());
            news.as_mut().enable();
            let told = *self.shared.told();
            self.seen = told.version;
            if is_so(&told) {
                return Ok(told.heads);
            }
            if told.is_closed {
                return Err(Closed);
            }
            news.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use convoke::terms::{Block, BlockHash};
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::chain::BlockRef;

    /// Only a test that fails waits for so long.
    const PATIENCE: Duration = Duration::from_secs(60);

    fn heads(number: u64) -> Heads {
        let block = |number| BlockRef { number: Block(number), hash: BlockHash::default() };
        Heads { best: block(number), finalized: block(number.saturating_sub(2)) }
    }

    #[tokio::test(start_paused = true)]
    async fn readers_wake_in_the_order_in_which_they_began_to_wait() {
        let watch = HeadWatch::new(heads(0));
        let woken = Arc::new(Mutex::new(Vec::<(u64, usize)>::new()));
        let readers: Vec<HeadReader> = (0..100).map(|_| watch.subscribe()).collect();
        // Begun in another order than they were made in; the odd ones look at the first block in vain.
        for (i, mut reader) in readers.into_iter().enumerate().rev() {
            let woken = Arc::clone(&woken);
            tokio::spawn(async move {
                if i % 2 == 0 {
                    reader.changed().await.unwrap();
                    woken.lock().unwrap().push((1, i));
                    reader.changed().await.unwrap();
                } else {
                    reader.wait_for(|heads| heads.best.number == Block(2)).await.unwrap();
                }
                woken.lock().unwrap().push((2, i));
            });
        }
        for number in 1..=2 {
            // The clock moves on only once all of them wait.
            sleep(Duration::from_millis(1)).await;
            watch.send_replace(heads(number));
        }
        sleep(Duration::from_millis(1)).await;
        let begun = || (0..100_usize).rev();
        let first = begun().filter(|i| i % 2 == 0).map(|i| (1, i));
        let expected: Vec<(u64, usize)> = first.chain(begun().map(|i| (2, i))).collect();
        assert_eq!(*woken.lock().unwrap(), expected);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nothing_told_between_a_look_and_a_wait_is_lost() {
        let (ask, answer) = (HeadWatch::new(heads(0)), HeadWatch::new(heads(0)));
        let (mut asked, mut answered) = (ask.subscribe(), answer.subscribe());
        let answering = tokio::spawn(async move {
            for number in 1..=10_000 {
                asked.wait_for(|heads| heads.best.number == Block(number)).await.unwrap();
                answer.send_replace(heads(number));
            }
        });
        let asking = async {
            for number in 1..=10_000 {
                ask.send_replace(heads(number));
                answered.changed().await.unwrap();
                assert_eq!(answered.borrow(), heads(number));
            }
        };
        timeout(PATIENCE, asking).await.expect("every question is heard, and so is every answer");
        answering.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_told_between_two_calls_is_seen_once() {
        let watch = HeadWatch::new(heads(0));
        let mut reader = watch.subscribe();
        assert!(timeout(PATIENCE, reader.changed()).await.is_err(), "the first heads are seen");
        watch.send_replace(heads(1));
        watch.send_replace(heads(2));
        let mut clone = reader.clone();
        assert_eq!(reader.changed().await, Ok(()));
        assert_eq!((reader.borrow(), watch.borrow()), (heads(2), heads(2)));
        assert!(timeout(PATIENCE, reader.changed()).await.is_err(), "both are seen");
        assert_eq!(clone.changed().await, Ok(()), "a clone sees for itself");
        watch.send_replace(heads(2));
        assert_eq!(reader.borrow(), heads(2), "a look alone is not having seen");
        assert_eq!(reader.changed().await, Ok(()));
        watch.send_replace(heads(3));
        assert_eq!(reader.borrow_and_update(), heads(3));
        assert!(timeout(PATIENCE, reader.changed()).await.is_err(), "that was");
    }

    #[tokio::test(start_paused = true)]
    async fn what_changes_nothing_wakes_nobody() {
        let watch = HeadWatch::new(heads(1));
        let mut reader = watch.subscribe();
        assert!(!watch.send_if_modified(|_| false));
        assert!(timeout(PATIENCE, reader.changed()).await.is_err());
        let moved = watch.send_if_modified(|heads| {
            heads.best.number = Block(5);
            true
        });
        assert!(moved);
        assert_eq!(reader.changed().await, Ok(()));
        assert_eq!((reader.borrow().best.number, reader.borrow().finalized), (Block(5), heads(1).finalized));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_so_from_the_start_is_not_waited_for() {
        let watch = HeadWatch::new(heads(7));
        let mut reader = watch.subscribe();
        assert_eq!(reader.wait_for(|heads| heads.finalized.number >= Block(5)).await, Ok(heads(7)));
        let later = reader.wait_for(|heads| heads.best.number >= Block(8));
        assert!(timeout(PATIENCE, later).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_is_told_after_the_last_heads() {
        let watch = HeadWatch::new(heads(0));
        let (mut reader, mut waiting) = (watch.subscribe(), watch.subscribe());
        let waiting = tokio::spawn(async move { waiting.wait_for(|heads| heads.best.number == Block(2)).await });
        sleep(Duration::from_millis(1)).await;
        watch.send_replace(heads(1));
        drop(watch);
        assert_eq!(reader.changed().await, Ok(()));
        assert_eq!(reader.changed().await, Err(Closed));
        assert_eq!(reader.borrow(), heads(1), "they can be read still");
        assert_eq!(reader.wait_for(|heads| heads.best.number == Block(1)).await, Ok(heads(1)));
        assert_eq!(waiting.await.unwrap(), Err(Closed));
    }
}
