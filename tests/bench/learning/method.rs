//! What is compared. A method is a line of text, which is also its name in the table, so that one more can be tried without
//! touching the program.
//!
//! `adamw` | `diloco alpha=0.7 momentum=0.9` | `sparse QUANTISER AGGREGATION k=64 alpha=1 beta=0.95`, with a config's names of
//! quantisers and aggregations, and `none` for exact values. k and α may change from round to round: `k=200x5,80` is 200
//! in the first five rounds and 80 from then on.

use std::str::FromStr;

use anyhow::{Context, bail, ensure};
use convoke::run_spec::{Aggregation, Quantiser, SparseSpec};

/// How peers train together.
#[derive(Debug, Clone)]
pub enum Method {
    /// One model, every step on the mean gradient of all peers' batches.
    AdamW,
    /// Dense pseudo-gradients, and Nesterov momentum on their mean.
    DiLoCo { alpha: f32, momentum: f32 },
    /// Sparse pseudo-gradients with error feedback.
    Sparse(Sparse),
}

/// SparseLoCo's free numbers.
#[derive(Debug, Clone)]
pub struct Sparse {
    /// None: the kept values are sent as they are.
    pub quantiser: Option<Quantiser>,
    aggregation: Aggregation,
    keep_per_chunk: Steps<usize>,
    lr_outer: Steps<f32>,
    error_decay: f32,
}

/// A number by round: each value for so many rounds, the last one from then on.
#[derive(Debug, Clone)]
struct Steps<T>(Vec<(T, usize)>);

impl Sparse {
    /// The numbers of one round. Without a quantiser one bit stands in: it decides no position.
    pub fn spec(&self, round: usize) -> SparseSpec {
        SparseSpec {
            keep_per_chunk: self.keep_per_chunk.at(round),
            error_decay: self.error_decay,
            lr_outer: self.lr_outer.at(round),
            quantiser: self.quantiser.unwrap_or(Quantiser::OneBit),
            aggregation: self.aggregation,
        }
    }
}

impl<T: Copy> Steps<T> {
    fn at(&self, round: usize) -> T {
        let mut ends = self.0.iter().scan(0, |end, (value, n_rounds)| {
            *end += n_rounds;
            Some((*value, *end))
        });
        let last = self.0[self.0.len() - 1].0;
        ends.find(|(_, end)| round < *end).map_or(last, |(value, _)| value)
    }
}

impl<T: FromStr<Err: std::error::Error + Send + Sync + 'static>> FromStr for Steps<T> {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let step = |part: &str| {
            let (value, n_rounds) = part.split_once('x').unwrap_or((part, "1"));
            anyhow::Ok((value.parse()?, n_rounds.parse()?))
        };
        Ok(Self(text.split(',').map(step).collect::<anyhow::Result<_>>()?))
    }
}

impl FromStr for Method {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let mut words = Words(text.split_whitespace().collect());
        let method = match words.name(&[("adamw", "adamw"), ("diloco", "diloco"), ("sparse", "sparse")])? {
            "adamw" => Self::AdamW,
            "diloco" => {
                Self::DiLoCo { alpha: words.number("alpha", "0.7")?, momentum: words.number("momentum", "0.9")? }
            }
            _ => Self::Sparse(Sparse {
                quantiser: words.name(&[
                    ("none", None),
                    ("sigma-bins", Some(Quantiser::SigmaBins)),
                    ("one-bit", Some(Quantiser::OneBit)),
                    ("two-bit", Some(Quantiser::TwoBit)),
                ])?,
                aggregation: words.name(&[
                    ("mean-of-all", Aggregation::MeanOfAll),
                    ("mean-of-senders", Aggregation::MeanOfSenders),
                ])?,
                keep_per_chunk: words.number("k", "64")?,
                lr_outer: words.number("alpha", "1")?,
                error_decay: words.number("beta", "0.95")?,
            }),
        };
        ensure!(words.0.is_empty(), "`{}` is not understood in `{text}`", words.0.join(" "));
        Ok(method)
    }
}

/// The words of a method that are not understood yet.
struct Words<'a>(Vec<&'a str>);

impl Words<'_> {
    /// Takes `key=value`, or else the default.
    fn number<T: FromStr<Err: Into<anyhow::Error>>>(&mut self, key: &str, default: &str) -> anyhow::Result<T> {
        let value_of = |word: &&str| word.split_once('=').is_some_and(|(name, _)| name == key);
        let found = self.0.iter().position(value_of).map(|at| self.0.remove(at));
        let text = found.and_then(|word| word.split_once('=')).map_or(default, |(_, value)| value);
        text.parse().map_err(Into::into).with_context(|| format!("in {key}={text}"))
    }

    /// Takes the first word, one of these names.
    fn name<T: Copy>(&mut self, names: &[(&str, T)]) -> anyhow::Result<T> {
        if let Some((_, value)) = names.iter().find(|(name, _)| self.0.first() == Some(name)) {
            self.0.remove(0);
            return Ok(*value);
        }
        let names: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
        bail!("`{}` should begin with one of {}", self.0.join(" "), names.join(", "))
    }
}
