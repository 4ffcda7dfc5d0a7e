//! Where an actor's heavy work is done: one piece after the other, while the actor goes on hearing.
//!
//! ractor's handlers share tokio's threads; a handler that computes for seconds makes its actor deaf and its neighbours
//! slow. So whoever computes owns a [`Workbench`]: a named thread that owns the state the work needs. A panic there ends
//! the thread and is told to the actor, which then fails itself and is restarted with fresh state.
//!
//! In a simulation the bench is a task instead, and a piece of work takes the time that a [`Pace`] gives it: nothing else could
//! take time where all nodes share one thread, and a clock that moves on when nobody has anything to do.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use convoke::terms::Round;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use crate::faults::Faults;
use crate::leaf::Leaf;
use crate::node::Parts;

/// What the benches of a node are.
#[derive(Clone)]
pub enum Bench {
    /// Threads.
    Thread,
    /// Tasks of the runtime, whose work takes virtual time.
    Task(Arc<dyn Pace>),
}

impl Bench {
    /// Does what would keep a thread of the runtime from its other work.
    ///
    /// # Errors
    /// What the work said when it panicked.
    pub async fn off_thread<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
        match self {
            Self::Thread => tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string()),
            Self::Task(_) => guarded(work),
        }
    }
}

impl Bench {
    /// Tells a simulation how many procedures of RoundClock are under way.
    pub fn procedures(&self, under_way: usize) {
        if let Self::Task(pace) = self {
            pace.procedures(under_way);
        }
    }
}

/// How long work takes in virtual time, and who hears how much of it there is.
pub trait Pace: Send + Sync {
    /// For a piece of work of this actor in this round; the point is its name in fault scripts.
    fn cost(&self, leaf: Leaf, point: &'static str, round: Round) -> Duration;

    /// So many pieces wait behind the one that is begun.
    fn waiting(&self, _leaf: Leaf, _pieces: usize) {}

    /// So many procedures of RoundClock are under way.
    fn procedures(&self, _under_way: usize) {}
}

/// Whose bench it is.
pub struct Place {
    /// What it is.
    pub bench: Bench,
    /// The name of the node.
    pub node: String,
    /// The actor.
    pub leaf: Leaf,
    /// What happens on it on purpose.
    pub faults: Arc<Faults>,
}

impl Place {
    /// The bench of one of a node's actors.
    #[must_use]
    pub fn of(parts: &Parts, leaf: Leaf) -> Self {
        let (node, faults) = (parts.config.node.name.clone(), Arc::clone(&parts.faults));
        Self { bench: parts.bench.clone(), node, leaf, faults }
    }
}

/// A piece of work, and the point of the fault script that comes before it.
struct Piece<S> {
    point: &'static str,
    round: Box<dyn FnOnce(&S) -> Round + Send>,
    work: Box<dyn FnOnce(&mut S) + Send>,
}

/// What owns an `S` and does work on it in order.
///
/// Dropping the bench ends it after the pieces that it was given.
pub struct Workbench<S>(Queue<S>);

enum Queue<S> {
    Thread(Sender<Piece<S>>),
    Task {
        queue: UnboundedSender<Piece<S>>,
        /// Says by its end that the bench was dropped.
        _owned: oneshot::Sender<()>,
    },
}

impl<S> fmt::Debug for Workbench<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Workbench")
    }
}

impl<S: Send + 'static> Workbench<S> {
    /// Starts it; `build` makes its state there. `failed` hears why it died, if it does.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn start(
        place: Place,
        build: impl FnOnce() -> S + Send + 'static,
        failed: impl FnOnce(String) + Send + 'static,
    ) -> std::io::Result<Self> {
        if let Bench::Task(pace) = &place.bench {
            let ((queue, pieces), (owned, dropped)) = (unbounded_channel(), oneshot::channel());
            tokio::spawn(serve_as_task(Arc::clone(pace), place, build, (pieces, dropped), failed));
            return Ok(Self(Queue::Task { queue, _owned: owned }));
        }
        let (work, queue) = channel();
        let name = format!("{}/{}", place.node, place.leaf);
        std::thread::Builder::new().name(name).spawn(move || {
            if let Err(why) = guarded(|| serve_on_thread(&place, build, &queue)) {
                failed(why);
            }
        })?;
        Ok(Self(Queue::Thread(work)))
    }

    /// Puts a piece of work in the queue. `point` is its name in fault scripts, and `round` tells the round when its turn has come.
    /// When the bench has died the work is dropped, and with it any reply port in it, which tells whoever waits.
    pub fn put(
        &self,
        point: &'static str,
        round: impl FnOnce(&S) -> Round + Send + 'static,
        work: impl FnOnce(&mut S) + Send + 'static,
    ) {
        let piece = Piece { point, round: Box::new(round), work: Box::new(work) };
        match &self.0 {
            Queue::Thread(queue) => drop(queue.send(piece)),
            Queue::Task { queue, .. } => drop(queue.send(piece)),
        }
    }
}

fn serve_on_thread<S>(place: &Place, build: impl FnOnce() -> S, queue: &Receiver<Piece<S>>) {
    let mut state = build();
    while let Ok(piece) = queue.recv() {
        let round = (piece.round)(&state);
        place.faults.point_on_thread(place.leaf, piece.point, round);
        (piece.work)(&mut state);
    }
}

async fn serve_as_task<S: Send>(
    pace: Arc<dyn Pace>,
    place: Place,
    build: impl FnOnce() -> S + Send,
    (mut queue, mut dropped): (UnboundedReceiver<Piece<S>>, oneshot::Receiver<()>),
    failed: impl FnOnce(String) + Send,
) {
    let mut state = match guarded(build) {
        Ok(state) => state,
        Err(why) => return failed(why),
    };
    while let Some(piece) = queue.recv().await {
        pace.waiting(place.leaf, queue.len());
        let round = (piece.round)(&state);
        // What dies or hangs does so in the middle of its work.
        let cost = pace.cost(place.leaf, piece.point, round);
        tokio::time::sleep(cost / 2).await;
        let struck = tokio::select! {
            biased;
            struck = place.faults.point_on_task(place.leaf, piece.point, round) => struck,
            // Whoever hangs does so until nobody waits for it, or what it holds would be held for ever.
            _ = &mut dropped => return,
        };
        tokio::time::sleep(cost - cost / 2).await;
        if let Err(why) = struck.and_then(|()| guarded(|| (piece.work)(&mut state))) {
            return failed(why);
        }
        let struck = tokio::select! {
            biased;
            struck = place.faults.done_on_task(place.leaf, piece.point, round) => struck,
            _ = &mut dropped => return,
        };
        if let Err(why) = struck {
            return failed(why);
        }
    }
}

/// What the work makes, or what it said when it panicked.
fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| reason(panic.as_ref()))
}

/// What a panic said.
#[must_use]
pub fn reason(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Journal;

    fn place(bench: Bench, faults: &[&str]) -> Place {
        let script = faults.iter().map(|fault| fault.parse().unwrap()).collect();
        let faults = Arc::new(Faults::new(script, Journal::unheard("test")));
        Place { bench, node: "test".to_owned(), leaf: Leaf::Compressor, faults }
    }

    struct Steady(Duration);

    impl Pace for Steady {
        fn cost(&self, _: Leaf, _: &'static str, _: Round) -> Duration {
            self.0
        }
    }

    const ROUND: fn(&Vec<i32>) -> Round = |_| Round(3);

    #[test]
    fn work_is_done_in_order_on_the_state() {
        let (answers, answer) = channel();
        let bench = Workbench::start(place(Bench::Thread, &[]), Vec::new, |_| {}).unwrap();
        for i in 0..3 {
            bench.put("push", ROUND, move |seen: &mut Vec<i32>| seen.push(i));
        }
        bench.put("tell", ROUND, move |seen| drop(answers.send(seen.clone())));
        assert_eq!(answer.recv().unwrap(), [0, 1, 2]);
    }

    #[test]
    fn a_panic_is_told_and_drops_what_waits() {
        let (told, hears) = channel();
        let bench = Workbench::start(place(Bench::Thread, &[]), Vec::new, move |why| drop(told.send(why))).unwrap();
        let (answers, answer) = channel::<()>();
        bench.put("die", ROUND, |_| panic!("on purpose"));
        bench.put("answer", ROUND, move |_| {
            // Never reached.
            answers.send(()).unwrap();
        });
        assert_eq!(hears.recv().unwrap(), "on purpose");
        assert!(answer.recv().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn on_a_task_work_takes_virtual_time_and_is_done_in_order() {
        let pace = Bench::Task(Arc::new(Steady(Duration::from_secs(60))));
        let started = tokio::time::Instant::now();
        let bench = Workbench::start(place(pace, &[]), Vec::new, |_| {}).unwrap();
        for i in 0..3 {
            bench.put("push", ROUND, move |seen: &mut Vec<i32>| seen.push(i));
        }
        let (answers, mut answer) = unbounded_channel();
        bench.put("tell", ROUND, move |seen| drop(answers.send(seen.clone())));
        assert_eq!(answer.recv().await.unwrap(), [0, 1, 2]);
        assert_eq!(started.elapsed().as_secs(), 240);
    }

    #[tokio::test(start_paused = true)]
    async fn on_a_task_faults_strike_in_the_middle_of_the_work() {
        let pace = || Bench::Task(Arc::new(Steady(Duration::from_secs(60))));
        let (told, mut hears) = unbounded_channel();
        let started = tokio::time::Instant::now();
        let dying = place(pace(), &["compressor:push:3:panic"]);
        let bench = Workbench::start(dying, Vec::new, move |why| drop(told.send(why))).unwrap();
        let (answers, mut answer) = unbounded_channel::<()>();
        bench.put("push", ROUND, move |_| {
            answers.send(()).unwrap();
        });
        assert!(hears.recv().await.unwrap().contains("on purpose"));
        assert_eq!((answer.recv().await, started.elapsed().as_secs()), (None, 60));
        // Whoever hangs keeps the reply port: the question runs into its deadline.
        let hanging = place(pace(), &["compressor:push:3:hang"]);
        let bench = Workbench::start(hanging, Vec::new, |_| {}).unwrap();
        let (answers, mut answer) = unbounded_channel::<()>();
        bench.put("push", ROUND, move |_| {
            answers.send(()).unwrap();
        });
        let waited = tokio::time::timeout(Duration::from_secs(3600), answer.recv()).await;
        assert!(waited.is_err(), "{waited:?}");
    }
}
