//! An actor's own OS thread: heavy work runs there, one piece after the other, while the actor goes on hearing.
//!
//! ractor's handlers share tokio's threads; a handler that computes for seconds makes its actor deaf and its neighbours
//! slow. So whoever computes owns a [`Workbench`]: a named thread that owns the state the work needs. A panic there ends
//! the thread and is told to the actor, which then fails itself and is restarted with fresh state.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};

type Work<S> = Box<dyn FnOnce(&mut S) + Send>;

/// A thread that owns an `S` and does work on it in order.
///
/// Dropping the bench ends the thread after the piece it is at.
#[derive(Debug)]
pub struct Workbench<S> {
    work: Sender<Work<S>>,
}

impl<S: 'static> Workbench<S> {
    /// Starts the thread; `build` makes its state there. `failed` hears why the thread died, if it does.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn start(
        name: String,
        build: impl FnOnce() -> S + Send + 'static,
        failed: impl FnOnce(String) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (work, queue) = channel();
        std::thread::Builder::new().name(name).spawn(move || {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| serve(build, &queue))) {
                failed(reason(panic.as_ref()));
            }
        })?;
        Ok(Self { work })
    }

    /// Puts a piece of work in the queue. When the thread has died the work is dropped, and with it any reply port in
    /// it, which tells whoever waits.
    pub fn put(&self, work: impl FnOnce(&mut S) + Send + 'static) {
        drop(self.work.send(Box::new(work)));
    }
}

fn serve<S>(build: impl FnOnce() -> S, queue: &Receiver<Work<S>>) {
    let mut state = build();
    while let Ok(work) = queue.recv() {
        work(&mut state);
    }
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

    #[test]
    fn work_is_done_in_order_on_the_state() {
        let bench = Workbench::start("test".to_owned(), Vec::new, |_| {}).unwrap();
        let (answers, answer) = channel();
        for i in 0..3 {
            bench.put(move |seen: &mut Vec<i32>| seen.push(i));
        }
        bench.put(move |seen| drop(answers.send(seen.clone())));
        assert_eq!(answer.recv().unwrap(), [0, 1, 2]);
    }

    #[test]
    fn a_panic_is_told_and_drops_what_waits() {
        let (told, hears) = channel();
        let bench = Workbench::start("test".to_owned(), || (), move |why| drop(told.send(why))).unwrap();
        let (answers, answer) = channel::<()>();
        bench.put(|()| panic!("on purpose"));
        bench.put(move |()| {
            // Never reached.
            answers.send(()).unwrap();
        });
        assert_eq!(hears.recv().unwrap(), "on purpose");
        assert!(answer.recv().is_err());
    }
}
