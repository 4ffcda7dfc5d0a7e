//! A batch's micro-batches on several cores: one single-threaded replica of the model a thread.
//!
//! Splitting the batch scales with the cores, where threads inside the small matrix products of one replica hardly help
//! (`tests/bench/train.rs` measures it). Replicas share the model's tensors; they only read them. Who computes which
//! micro-batch does not change a bit, since results are handed back, and added, in the batch's order.
//!
//! The threads live as long as the worker: their allocators and stacks stay warm. A panic in a replica goes on in the worker
//! that waits for it, which its supervisor restarts.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};

use convoke::model::inner::Replicas;
use convoke::model::llama::{Batch, Grads, Llama};

/// Runs on a replica's thread and sends its own answer.
type Job = Box<dyn FnOnce() + Send>;

/// Threads that compute gradients and losses; dropping it ends and joins them.
pub struct Threaded {
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Threaded {
    /// Starts `n_threads`, one at least.
    ///
    /// # Panics
    /// When the system gives no more threads.
    pub fn new(n_threads: usize) -> Self {
        let (jobs, queue) = channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        let start = |idx: usize| {
            let queue = Arc::clone(&queue);
            let thread = Builder::new().name(format!("replica-{idx}")).spawn(move || work(&queue));
            thread.expect("the system gives a worker its threads")
        };
        Self { jobs: Some(jobs), threads: (0..n_threads.max(1)).map(start).collect() }
    }

    /// Mean loss of each sequence of each batch, in the order given.
    pub fn losses(&mut self, model: &Llama, batches: Vec<Batch>) -> Vec<Vec<f64>> {
        self.map(model, batches, |model, batch| model.losses(batch))
    }

    /// `work` of each batch, in the order given, on whichever thread is free.
    fn map<T: Send + 'static>(&self, model: &Llama, batches: Vec<Batch>, work: fn(&Llama, &Batch) -> T) -> Vec<T> {
        let jobs = self.jobs.as_ref().expect("taken only by drop");
        let (done, answers) = channel();
        let n_jobs = batches.len();
        for (place, batch) in batches.into_iter().enumerate() {
            let (model, done) = (model.clone(), done.clone());
            let job: Job = Box::new(move || {
                let outcome = catch_unwind(AssertUnwindSafe(|| work(&model, &batch)));
                // The optimiser updates the tensors in place only when no replica holds them any more.
                drop(model);
                // Nobody listens when another job of the same call has panicked; the answer is then not wanted.
                drop(done.send((place, outcome)));
            });
            jobs.send(job).expect("replica threads live as long as their owner");
        }
        let mut results: Vec<Option<T>> = (0..n_jobs).map(|_| None).collect();
        for _ in 0..n_jobs {
            let (place, outcome) = answers.recv().expect("every job answers");
            results[place] = Some(outcome.unwrap_or_else(|panic| resume_unwind(panic)));
        }
        results.into_iter().map(|result| result.expect("every place is answered once")).collect()
    }
}

fn work(queue: &Mutex<Receiver<Job>>) {
    loop {
        let job = queue.lock().expect("no thread panics while it takes a job").recv();
        let Ok(job) = job else { return };
        job();
    }
}

impl Replicas for Threaded {
    fn gradients(&mut self, model: &Llama, micro_batches: Vec<Batch>) -> Vec<(f64, Grads)> {
        self.map(model, micro_batches, |model, batch| model.loss_and_grads(batch))
    }
}

impl Drop for Threaded {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // Panics are caught and handed to whoever waits for the answer, so there is nothing left to report.
            drop(thread.join());
        }
    }
}
