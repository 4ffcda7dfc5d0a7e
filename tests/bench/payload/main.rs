//! The payload path against what memory and information theory allow: `cargo xtask bench payload`.
//!
//! Arguments: millions of parameters (64), repetitions (7). Quiet the machine first.

#![expect(clippy::print_stdout, reason = "it measures, and says what it measured")]
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

#[path = "../../../actors/pool.rs"]
mod pool;

mod encode;
mod floor;

use convoke::run_spec::{Aggregation, Quantiser, SparseSpec};
use convoke::sparseloco::{Layout, TensorShape};

fn spec(quantiser: Quantiser) -> SparseSpec {
    SparseSpec {
        keep_per_chunk: 64,
        error_decay: 0.95,
        lr_outer: 1.0,
        quantiser,
        aggregation: Aggregation::MeanOfSenders,
    }
}

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with("--"));
    let mut number = |default: usize| args.next().map_or(Ok(default), |arg| arg.parse());
    let (millions, repetitions) = (number(64)?, number(7)?);
    let tensor = |i: usize| TensorShape { name: format!("w{i}"), shape: vec![4096, 1024] };
    let layout = Layout::new((0..millions.div_ceil(4)).map(tensor).collect())?;
    println!("{} parameters, {repetitions} repetitions", layout.n_params());
    let mut gradients = encode::Gradients::new(&layout, 1)?;
    for quantiser in [Quantiser::OneBit, Quantiser::TwoBit] {
        for encoding in encode::on_one_core(&layout, &spec(quantiser), &mut gradients, repetitions) {
            let per_chunk = encoding.seconds / layout.n_chunks() as f64 * 1e6;
            println!("{quantiser:?} {:?}: {:.1} ms, {per_chunk:.2} us/chunk, {:.2} of floor", encoding.simd, encoding.seconds * 1e3, encoding.of_floor);
        }
    }
    let [encoding, floor] = encode::on_two_threads(&layout, &spec(Quantiser::OneBit), &mut gradients, repetitions)?;
    println!("two threads {encoding:.2}, floor {floor:.2}");
    Ok(())
}
