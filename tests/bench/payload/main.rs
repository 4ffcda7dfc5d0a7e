//! The payload path against what memory and information theory allow: `cargo xtask bench payload`.
//!
//! Arguments: millions of parameters (64), repetitions (7). Every figure but the threads' is of one core, by its own clock of work done; a
//! floor is measured right before what is held against it, and medians of ratios are shown. Quiet the machine first.

#![expect(clippy::print_stdout, reason = "it measures, and says what it measured")]
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

#[path = "../../../actors/pool.rs"]
#[allow(unused_imports, dead_code, reason = "its tests, and what only the node wants of it")]
mod pool;

mod encode;
mod floor;
mod merge;
mod wire;

use convoke::pool::Inline;
use convoke::run_spec::{Aggregation, Quantiser, SparseSpec};
use convoke::sparseloco::{BodyRef, Layout, Simd, TensorShape};

use merge::Contributions;
use wire::Wire;

const QUANTISERS: [Quantiser; 2] = [Quantiser::OneBit, Quantiser::TwoBit];

/// k = 64 of 4096, whatever the default run keeps: the setting that the reference run and all ratios are told for.
fn spec(quantiser: Quantiser) -> SparseSpec {
    SparseSpec {
        keep_per_chunk: 64,
        error_decay: 0.95,
        lr_outer: 1.0,
        quantiser,
        aggregation: Aggregation::MeanOfSenders,
    }
}

/// A row of the table: what, the figure, the least that is wanted.
fn row(what: &str, figure: f64, wanted: Option<f64>) {
    let (wanted, verdict) = match wanted {
        Some(wanted) => (format!("{wanted:.2}"), if figure >= wanted { "met" } else { "MISSED" }),
        None => (String::new(), ""),
    };
    println!("| {what} | {figure:.2} | {wanted} | {verdict} |");
}

fn sizes_and_transport(layout: &Layout, gradients: &mut encode::Gradients, repetitions: usize) {
    for (quantiser, wanted) in QUANTISERS.into_iter().zip([[222.0, 240.0], [200.0, 215.0]]) {
        let (spec, name) = (spec(quantiser), quantiser.name());
        // Some rounds of error feedback first: what is sent then is what a run sends.
        let encoded = (0..4).map(|_| gradients.encode(&Inline, Simd::best(), layout, &spec)).last();
        let wire = Wire::new(layout, &spec, encoded.expect("four rounds"));
        let [canonical, transport] = wire.ratios();
        row(&format!("{name}: fp32 over canonical payload, ×"), canonical, Some(wanted[0]));
        row(&format!("{name}: fp32 over transport coding, ×"), transport, Some(wanted[1]));
        let [coded, decoded] = wire.values_per_second(repetitions);
        row(&format!("{name}: transport coding, M values/s"), coded / 1e6, None);
        row(&format!("{name}: transport decoding, M values/s"), decoded / 1e6, Some(400.0));
    }
}

fn encoding(layout: &Layout, gradients: &mut encode::Gradients, repetitions: usize) -> anyhow::Result<()> {
    for quantiser in QUANTISERS {
        for encoding in encode::on_one_core(layout, &spec(quantiser), gradients, repetitions) {
            let wanted = match encoding.simd {
                Simd::Portable => 0.25,
                Simd::Avx2 => 0.4,
                Simd::Avx512 => 0.5,
            };
            let per_chunk = encoding.seconds / layout.n_chunks() as f64 * 1e6;
            let (name, simd) = (quantiser.name(), encoding.simd);
            let what =
                format!("{name}, {simd:?}: encode, of the floor of 2 reads and 1 write ({per_chunk:.2} µs a chunk)");
            row(&what, encoding.of_floor, Some(wanted));
        }
    }
    memory_row("encode", encode::memory(layout, &spec(Quantiser::TwoBit), gradients));
    let [encoding, floor] = encode::on_two_threads(layout, &spec(Quantiser::OneBit), gradients, repetitions)?;
    row("two threads over one, the floor", floor, None);
    row("two threads over one, encode", encoding, Some(floor.min(1.7)));
    Ok(())
}

/// KiB at most; the stack, some 100 KiB of each thread's, is not in it.
fn memory_row(what: &str, bytes: u64) {
    let verdict = if bytes < 1_000_000 { "met" } else { "MISSED" };
    println!(
        "| {what}: heap beyond θ, e and payloads, kB a thread | {:.0} | at most 1000 | {verdict} |",
        bytes as f64 / 1e3
    );
}

fn merging(n_chunks: usize, repetitions: usize) -> anyhow::Result<()> {
    for quantiser in QUANTISERS {
        let (name, r) = (quantiser.name(), merge::CONTRIBUTIONS);
        let contributions = Contributions::new(&spec(quantiser), n_chunks)?;
        memory_row(&format!("{name}: outer step R = {r} with digest"), contributions.memory()?);
        for simd in Simd::available() {
            let wanted = (simd == BodyRef::CHECK_SIMD_MAX.min(Simd::best())).then_some(1.5);
            let values = contributions.values_checked(simd, repetitions) / 1e9;
            row(&format!("{name}, {simd:?}: decode and check, G values/s"), values, wanted);
        }
        for simd in Simd::available() {
            for aggregation in [Aggregation::MeanOfSenders, Aggregation::MeanOfAll] {
                let wanted = (simd == Simd::best()).then_some(0.25);
                let [step, hashed] = contributions.of_floor(simd, aggregation, repetitions)?;
                let what = format!("{name}, {simd:?}, {aggregation:?}: outer step R = {r}");
                row(&format!("{what}, of the floor of 1 read and 1 write"), step, wanted);
                row(&format!("{what} with θ's digest, of the same"), hashed, None);
            }
        }
    }
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with("--"));
    let mut number = |default: usize| args.next().map_or(Ok(default), |arg| arg.parse());
    let (millions, repetitions) = (number(64)?, number(7)?);
    // 4 Mi parameters a tensor.
    let tensor = |i: usize| TensorShape { name: format!("w{i}"), shape: vec![4096, 1024] };
    let layout = Layout::new((0..millions.div_ceil(4)).map(tensor).collect())?;
    println!("{} parameters, k = 64 of 4096, {repetitions} repetitions\n", layout.n_params());
    println!("| figure | measured | at least | |\n|---|---|---|---|");
    let mut gradients = encode::Gradients::new(&layout, 1)?;
    sizes_and_transport(&layout, &mut gradients, repetitions);
    encoding(&layout, &mut gradients, repetitions)?;
    merging(layout.n_chunks(), repetitions)
}
