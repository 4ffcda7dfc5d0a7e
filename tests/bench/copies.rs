//! How much honest peers agree by themselves, so that copies can be told from them: `cargo xtask bench copies`.
//!
//! The default run's model on its corpus. In each round peers train on their own samples: some for all inner steps with the optimiser
//! they had, some as joiners for one, two or four steps with a new one. All payloads are the library's own; θ goes on by the
//! contributions of those that trained in full. A row is a round and a pair of kinds: the lowest, median and highest agreement
//! ([`convoke::sparseloco::overlaps`]) of such pairs. `inner.steps_min` and `gauntlet.copy_overlap_max` rest on it.
//!
//! Arguments: `--rounds N` (8), `--peers N` (4) of each kind, 2 to 60.

#![expect(clippy::print_stdout, reason = "it measures, and says what it measured")]
#![allow(clippy::unwrap_used, reason = "what is not as expected ends the measurement")]

use burn::tensor::Device;
use convoke::assignment::assigned;
use convoke::digest::digest;
use convoke::genesis;
use convoke::hotkey::HotkeyPair;
use convoke::model::inner::{Sequential, inner_steps};
use convoke::model::llama::{Batch, Llama};
use convoke::model::optimiser::AdamW;
use convoke::payload::{Header, Payload};
use convoke::sparseloco::{self, Layout};
use convoke::terms::{BlockHash, Round, RunId, Uid};
use convoke_node::cli::RunArgs;
use convoke_node::config::NodeConfig;
use convoke_node::data::Dataset;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Steps of a joiner that came late in the round.
const LATE: [u32; 3] = [1, 2, 4];

struct Peer {
    pair: HotkeyPair,
    /// `None`: all, with the optimiser of the rounds before.
    late: Option<u32>,
    optimiser: Option<AdamW>,
    error: Vec<f32>,
}

fn main() {
    let (mut rounds, mut n_each) = (8_u64, 4_u8);
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    while let Some(argument) = arguments.next() {
        let value = arguments.next().unwrap_or_else(|| panic!("{argument} takes a value"));
        match argument.as_str() {
            "--rounds" => rounds = value.parse().unwrap(),
            "--peers" => n_each = value.parse().unwrap(),
            _ => panic!("`{argument}`: the arguments are --rounds N and --peers N"),
        }
    }
    assert!((2..=60).contains(&n_each), "--peers {n_each}: from 2, which make a pair, to 60");
    let cache = tempfile::tempdir().unwrap();
    let config = RunArgs { data_dir: Some(cache.path().to_owned()), ..RunArgs::default() }.config().unwrap();
    let model = &config.run.model;
    let dataset = Dataset::open(&config.data, &config.run.data, model.context_len, model.vocab_size, cache.path());
    let (dataset, layout) = (dataset.unwrap(), genesis::layout(model).unwrap());
    let mut theta = genesis::theta(model, 1, &layout);
    let kinds: Vec<Option<u32>> = std::iter::once(None).chain(LATE.map(Some)).collect();
    let mut peers: Vec<Peer> = Vec::new();
    for late in &kinds {
        for _ in 0..n_each {
            let pair = HotkeyPair::from_seed(&[peers.len() as u8 + 1; 32]);
            peers.push(Peer { pair, late: *late, optimiser: None, error: vec![0.0; theta.len()] });
        }
    }
    println!("{:>5}  {:<12} {:>7} {:>7} {:>7}", "round", "steps", "lowest", "median", "highest");
    for round in 0..rounds {
        let payloads: Vec<Payload> =
            peers.iter_mut().map(|peer| peer.contribute(&config, &dataset, &layout, &theta, round)).collect();
        let bodies: Vec<_> = payloads.iter().map(Payload::body).collect();
        let overlaps = sparseloco::overlaps(&layout, &bodies);
        for (i, first) in kinds.iter().enumerate() {
            for second in &kinds[i..] {
                let mut found = Vec::new();
                for a in 0..peers.len() {
                    let others = (a + 1..peers.len()).filter(|b| peers[*b].late == *second && peers[a].late == *first);
                    found.extend(others.map(|b| overlaps[b][a]));
                }
                found.sort_by(f64::total_cmp);
                let name = |kind: &Option<u32>| kind.map_or_else(|| "all".to_owned(), |steps| steps.to_string());
                let pair = format!("{} and {}", name(first), name(second));
                let (low, high) = (found[0], found[found.len() - 1]);
                println!("{round:>5}  {pair:<12} {low:>7.3} {:>7.3} {high:>7.3}", found[found.len() / 2]);
            }
        }
        let bodies: Vec<_> =
            peers.iter().zip(&payloads).filter(|(peer, _)| peer.late.is_none()).map(|(_, p)| p.body()).collect();
        sparseloco::outer_step(&layout, &config.run.sparse, &bodies, &mut theta);
    }
}

impl Peer {
    fn contribute(
        &mut self,
        config: &NodeConfig,
        dataset: &Dataset,
        layout: &Layout,
        theta: &[f32],
        round: u64,
    ) -> Payload {
        let run = &config.run;
        let mut model = Llama::from_tensors(&run.model, &Device::flex(), |idx| {
            let mut row_major = vec![0.0; layout.tensors()[idx].shape.iter().product()];
            layout.scatter(idx, theta, &mut row_major);
            row_major
        });
        if self.late.is_some() {
            self.optimiser = None;
            self.error.fill(0.0);
        }
        let mut optimiser = self.optimiser.take().unwrap_or_else(|| AdamW::new(&model));
        let (steps, batch) = (self.late.unwrap_or(run.inner.steps), run.inner.batch_sequences);
        let seed = BlockHash([round as u8 + 1; 32]);
        let samples = assigned(&seed, &self.pair.hotkey(), dataset.n_train_samples(), steps as usize * batch);
        let batches = samples.chunks(batch).map(|samples| {
            let tokens = samples.iter().flat_map(|sample| dataset.sample(*sample)).collect();
            Batch::new(tokens, run.model.context_len + 1).unwrap()
        });
        let first = round * u64::from(run.inner.steps);
        inner_steps(&mut model, &mut optimiser, &run.inner, first, batches, &mut Sequential, |_| true);
        self.optimiser = Some(optimiser);
        let mut delta = vec![0.0; layout.flat_len()];
        model.export(|idx, values| layout.gather(idx, values, &mut delta));
        delta.iter_mut().zip(theta).for_each(|(end, start)| *end = start - *end);
        let encoded = sparseloco::encode(layout, &run.sparse, &mut self.error, &delta).unwrap();
        let header = Header {
            run_id: RunId([0; 32]),
            round: Round(round),
            uid: Uid(0),
            hotkey: self.pair.hotkey(),
            base: digest(theta),
            layout: layout.hash(),
            inner_steps: steps,
        };
        Payload::seal(header, layout, &run.sparse, encoded.body, &self.pair)
    }
}
