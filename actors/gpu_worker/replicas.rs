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

#[cfg(test)]
mod tests {
    #[test]
    fn two_threads_take_the_same_inner_steps_as_one_bit_for_bit() {
        use burn::tensor::Device;
        use convoke::model::initial::init_tensor;
        use convoke::model::inner::{Replicas, Sequential, inner_steps};
        use convoke::model::llama::{Batch, Llama};
        use convoke::model::optimiser::AdamW;
        use convoke::run_spec::{InnerSpec, ModelSpec};

        let spec: ModelSpec = toml::from_str(include_str!("../../configs/models/tiny.toml")).unwrap();
        let inner = InnerSpec {
            steps: 3,
            steps_min: 1,
            batch_sequences: 6,
            micro_batch_sequences: 2,
            lr_peak: 1e-3,
            lr_warmup_steps: 0,
            lr_decay_steps: 100,
            lr_floor_ratio: 0.1,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            clip_norm: 1.0,
        };
        let run = |replicas: &mut dyn Replicas| {
            let mut model = Llama::from_tensors(&spec, &Device::flex(), |idx| init_tensor(&spec, 1, idx));
            let mut optimiser = AdamW::new(&model);
            let token = |i: u32| i * 7919 % 2048;
            let batches = (0..3).map(|step| Batch::new((0..6 * 33).map(|i| token(i + step)).collect(), 33).unwrap());
            let reports = inner_steps(&mut model, &mut optimiser, &inner, 0, batches, replicas, |_| true);
            let mut tensors = Vec::new();
            model.export(|_, values| tensors.push(values.to_vec()));
            (reports, tensors)
        };
        let alone = run(&mut Sequential);
        assert_eq!(alone, run(&mut super::Threaded::new(1)));
        assert_eq!(alone, run(&mut super::Threaded::new(2)));
    }

    #[test]
    fn a_panic_in_a_replica_reaches_whoever_waits_and_the_threads_go_on() {
        use burn::tensor::Device;
        use convoke::model::initial::init_tensor;
        use convoke::model::llama::{Batch, Llama};
        use convoke::run_spec::ModelSpec;

        let spec: ModelSpec = toml::from_str(include_str!("../../configs/models/tiny.toml")).unwrap();
        let model = Llama::from_tensors(&spec, &Device::flex(), |idx| init_tensor(&spec, 1, idx));
        let mut replicas = super::Threaded::new(2);
        let too_long = Batch::new(vec![0; spec.context_len + 2], spec.context_len + 2).unwrap();
        let call = std::panic::AssertUnwindSafe(|| replicas.losses(&model, vec![too_long]));
        assert!(std::panic::catch_unwind(call).is_err());
        let short = Batch::new(vec![0; 8], 4).unwrap();
        assert_eq!(replicas.losses(&model, vec![short.clone(), short])[1].len(), 2);
    }
}
