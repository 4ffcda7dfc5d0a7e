//! Every number that all nodes of a run must share, with its range, and the hash that names the run.
//!
//! Two nodes train together only if their [`RunSpec::run_id`] is equal: it covers every field here and the data set.
//! What a node may choose for itself (device, ports, directories) is not in here.

use serde::{Deserialize, Serialize};

use crate::terms::{Digest, RunId};

/// The whole of a run's shared numbers. Defaults of the default run are in `configs/default.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSpec {
    /// A name for people; part of the hash, so that a copy under another name is another run.
    pub name: String,
    /// The subnet whose clock and registry the run uses.
    pub netuid: u16,
    /// Seeds the initial parameters.
    pub seed: u64,
    /// The model's geometry.
    pub model: ModelSpec,
    /// The inner steps of a round.
    pub inner: InnerSpec,
    /// Compression and the outer step.
    pub sparse: SparseSpec,
    /// The windows of a round, in blocks.
    pub timing: TimingSpec,
    /// Scores, ratings and weights.
    pub gauntlet: GauntletSpec,
    /// How the token stream is cut into samples.
    pub data: DataSpec,
}

/// LLaMA's geometry, in Hugging Face's meaning of each number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// Entries of the tokenizer and of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Decoder blocks.
    pub n_layers: usize,
    /// Query heads; the head width is `d_model / n_heads`.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of the SwiGLU's hidden layer.
    pub d_ff: usize,
    /// Tokens per sequence.
    pub context_len: usize,
    /// RoPE's base.
    pub rope_theta: f64,
    /// RMSNorm's epsilon.
    pub norm_eps: f64,
    /// Whether the head is the embedding's transpose.
    pub tied_head: bool,
}

/// AdamW and its schedule. The schedule's step is `round · steps + i`: a function of the chain alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InnerSpec {
    /// H: at most this many inner steps a round.
    pub steps: u32,
    /// Whoever made fewer inner steps in a round contributes nothing to it. After the first step of a new optimiser every
    /// parameter has moved by the learning rate, and what is kept says more about θ than about the data.
    pub steps_min: u32,
    /// Sequences per inner step.
    pub batch_sequences: usize,
    /// Sequences whose gradient is computed at once. The gradients of a batch's micro-batches are added in their order,
    /// so this number, and not how many workers share the batch, decides the bits.
    pub micro_batch_sequences: usize,
    /// Peak learning rate.
    pub lr_peak: f64,
    /// Linear warm-up, in inner steps.
    pub lr_warmup_steps: u64,
    /// End of the cosine, in inner steps from the start of the run.
    pub lr_decay_steps: u64,
    /// Where the cosine ends, as a share of the peak.
    pub lr_floor_ratio: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, times the learning rate, on every parameter.
    pub weight_decay: f64,
    /// The gradient's global L2 norm is scaled down to this.
    pub clip_norm: f64,
}

impl InnerSpec {
    /// The inner steps that a contribution is made of: as many as were made, or none where they are too few.
    #[must_use]
    pub fn counted(&self, made: u32) -> u32 {
        if made < self.steps_min { 0 } else { made }
    }
}

/// SparseLoCo's numbers (arXiv:2508.15706).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SparseSpec {
    /// k: values kept of each chunk of 4096.
    pub keep_per_chunk: usize,
    /// β: decay of the error feedback.
    pub error_decay: f32,
    /// α: the outer learning rate.
    pub lr_outer: f32,
    /// How kept values are written.
    pub quantiser: Quantiser,
    /// How the contributions of a round become one.
    pub aggregation: Aggregation,
}

/// How kept values are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Quantiser {
    /// Sign and one magnitude bit; two levels per tensor, one scale per chunk.
    TwoBit,
    /// Sign; one scale per chunk.
    OneBit,
    /// The reference run's four bins per tensor, for parity and comparison.
    SigmaBins,
}

impl Quantiser {
    /// The name it has in a config.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::TwoBit => "two-bit",
            Self::OneBit => "one-bit",
            Self::SigmaBins => "sigma-bins",
        }
    }
}

/// How the contributions of a round become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aggregation {
    /// Σ/R over all contributions (the paper).
    MeanOfAll,
    /// Per coordinate over those that sent it (the reference run's code).
    MeanOfSenders,
}

/// The windows of a round. Offsets count from the round's first block, or from the next round's where it says so.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimingSpec {
    /// B: blocks per round.
    pub blocks_per_round: u64,
    /// d: a round's seed is the hash of the block this many before the round's first.
    pub finality_depth: u64,
    /// The best head counts once this many blocks stand on it.
    pub head_confirmations: u64,
    /// Inner steps end this many blocks before the round does, to leave room for compression and the seal.
    pub seal_window: u64,
    /// Payloads of round t are fetched in this many blocks from (t+1)·B on.
    pub gather_window: u64,
    /// Manifests of round t count until this many blocks after (t+1)·B.
    pub manifest_window: u64,
    /// Blocks a standby validator waits for those before it.
    pub standby_blocks: u64,
    /// Validators keep θ of every so many rounds for those who join or come back.
    pub checkpoint_rounds: u64,
}

/// Scores, ratings, weights (arXiv:2505.21684 and the reference run's code).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GauntletSpec {
    /// Contributions a manifest holds at most.
    pub contributors_max: usize,
    /// Places of those that are kept for newcomers without a rating.
    pub newcomer_places: usize,
    /// c: the LossScore applies a contribution with c·α.
    pub step_ratio: f32,
    /// Sequences in each of the two sample sets of a LossScore.
    pub eval_sequences: usize,
    /// Contributions a validator evaluates a round at most.
    pub evaluations_max: usize,
    /// Weight of the newest value in the average of sign(own − unassigned improvement).
    pub honesty_decay: f64,
    /// Evaluations before that average counts.
    pub honesty_warmup: u32,
    /// Below this average a peer earns nothing.
    pub honesty_floor: f64,
    /// OpenSkill's β.
    pub rating_beta: f64,
    /// OpenSkill's τ.
    pub rating_tau: f64,
    /// Weight is (1/rank)^exponent: one strong machine earns more than the same machine split.
    pub weight_exponent: f64,
    /// Share of the weight that goes to the burn uid.
    pub burn_share: f64,
    /// Who receives that share.
    pub burn_uid: u16,
    /// How far two payloads may agree in what they keep, beyond what is usual in the round, before the later seal is a copy: a
    /// share of what is left between the usual and a full agreement.
    pub copy_overlap_max: f64,
    /// A failed round multiplies the final score by this.
    pub failure_decay: f64,
    /// Rounds an excluded peer waits before it may be chosen again.
    pub exclusion_rounds: u64,
    /// Chunks of θ in the keyed digest.
    pub holding_chunks: usize,
    /// Rounds between two submissions of weights.
    pub rounds_per_weights: u64,
}

/// How the token stream is cut into samples; the stream itself is in the run's hash by its digest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSpec {
    /// The last share of the stream is never trained on.
    pub heldout_ratio: f64,
    /// Held-out sequences whose loss is reported every round.
    pub heldout_sequences: usize,
}

/// Why a run spec is refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RunSpecError {
    /// A number outside its range.
    #[error("`{key}` is {value}: it must be {range}")]
    OutOfRange {
        /// The number's path in the run spec.
        key: &'static str,
        /// What it is.
        value: String,
        /// What it may be.
        range: String,
    },
    /// Two numbers that do not go together.
    #[error("`{key}` is {value}: {rule}")]
    Inconsistent {
        /// The number's path in the run spec.
        key: &'static str,
        /// What it is.
        value: String,
        /// What it must satisfy.
        rule: String,
    },
}

impl RunSpec {
    /// The run's name among machines: two nodes train together only if it is equal.
    ///
    /// `dataset` is the digest of tokenizer and token stream.
    ///
    /// # Panics
    /// Never: every field has an encoding.
    #[must_use]
    pub fn run_id(&self, dataset: &Digest) -> RunId {
        let encoded = postcard::to_allocvec(&(self, dataset)).expect("plain numbers and text encode");
        RunId(blake3::derive_key("convoke 2026-11 run id v1", &encoded))
    }

    /// Checks every range and every rule that ties two numbers.
    ///
    /// # Errors
    /// The first number that is wrong, with its range: correct it in the config.
    pub fn validate(&self) -> Result<(), RunSpecError> {
        self.validate_model()?;
        self.validate_inner()?;
        self.validate_sparse()?;
        self.validate_timing()?;
        self.validate_gauntlet()?;
        within("data.heldout_ratio", self.data.heldout_ratio, 0.001, 0.5)?;
        within("data.heldout_sequences", self.data.heldout_sequences, 1, 65_536)
    }

    fn validate_model(&self) -> Result<(), RunSpecError> {
        let model = &self.model;
        within("model.vocab_size", model.vocab_size, 2, 1 << 20)?;
        within("model.d_model", model.d_model, 8, 1 << 16)?;
        within("model.n_layers", model.n_layers, 1, 1024)?;
        within("model.n_heads", model.n_heads, 1, 1024)?;
        within("model.n_kv_heads", model.n_kv_heads, 1, 1024)?;
        within("model.d_ff", model.d_ff, 8, 1 << 20)?;
        within("model.context_len", model.context_len, 2, 1 << 20)?;
        within("model.rope_theta", model.rope_theta, 1.0, 1e9)?;
        within("model.norm_eps", model.norm_eps, 1e-12, 1e-2)?;
        holds(model.d_model.is_multiple_of(2 * model.n_heads), "model.d_model", model.d_model, || {
            format!(
                "it must be a multiple of 2 · model.n_heads = {}, so that heads have an even width",
                2 * model.n_heads
            )
        })?;
        holds(model.n_heads.is_multiple_of(model.n_kv_heads), "model.n_kv_heads", model.n_kv_heads, || {
            format!("it must divide model.n_heads = {}", model.n_heads)
        })
    }

    fn validate_inner(&self) -> Result<(), RunSpecError> {
        let inner = &self.inner;
        within("inner.steps", inner.steps, 1, 100_000)?;
        within("inner.steps_min", inner.steps_min, 1, 100_000)?;
        holds(inner.steps_min <= inner.steps, "inner.steps_min", inner.steps_min, || {
            format!("it must be at most inner.steps = {}", inner.steps)
        })?;
        within("inner.batch_sequences", inner.batch_sequences, 1, 1 << 20)?;
        within("inner.micro_batch_sequences", inner.micro_batch_sequences, 1, 1 << 20)?;
        holds(
            inner.batch_sequences.is_multiple_of(inner.micro_batch_sequences),
            "inner.micro_batch_sequences",
            inner.micro_batch_sequences,
            || format!("it must divide inner.batch_sequences = {}", inner.batch_sequences),
        )?;
        within("inner.lr_peak", inner.lr_peak, 0.0, 10.0)?;
        within("inner.lr_warmup_steps", inner.lr_warmup_steps, 0, 1 << 40)?;
        within("inner.lr_decay_steps", inner.lr_decay_steps, 1, 1 << 40)?;
        holds(inner.lr_warmup_steps < inner.lr_decay_steps, "inner.lr_warmup_steps", inner.lr_warmup_steps, || {
            format!("it must be less than inner.lr_decay_steps = {}", inner.lr_decay_steps)
        })?;
        within("inner.lr_floor_ratio", inner.lr_floor_ratio, 0.0, 1.0)?;
        within("inner.beta1", inner.beta1, 0.0, 0.9999)?;
        within("inner.beta2", inner.beta2, 0.0, 0.99999)?;
        within("inner.eps", inner.eps, 1e-12, 1.0)?;
        within("inner.weight_decay", inner.weight_decay, 0.0, 1.0)?;
        within("inner.clip_norm", inner.clip_norm, 1e-6, 1e6)
    }

    fn validate_sparse(&self) -> Result<(), RunSpecError> {
        let sparse = &self.sparse;
        within("sparse.keep_per_chunk", sparse.keep_per_chunk, 1, 1024)?;
        within("sparse.error_decay", sparse.error_decay, 0.0, 1.0)?;
        within("sparse.lr_outer", sparse.lr_outer, 0.0, 10.0)
    }

    fn validate_timing(&self) -> Result<(), RunSpecError> {
        let timing = &self.timing;
        within("timing.blocks_per_round", timing.blocks_per_round, 4, 1 << 20)?;
        within("timing.finality_depth", timing.finality_depth, 1, 1 << 16)?;
        within("timing.head_confirmations", timing.head_confirmations, 0, 64)?;
        within("timing.seal_window", timing.seal_window, 1, 1 << 20)?;
        within("timing.gather_window", timing.gather_window, 1, 1 << 20)?;
        within("timing.manifest_window", timing.manifest_window, 1, 1 << 20)?;
        within("timing.standby_blocks", timing.standby_blocks, 1, 1 << 16)?;
        within("timing.checkpoint_rounds", timing.checkpoint_rounds, 1, 1 << 20)?;
        holds(timing.gather_window <= timing.manifest_window, "timing.gather_window", timing.gather_window, || {
            format!("it must be at most timing.manifest_window = {}", timing.manifest_window)
        })?;
        let (confirmations, window) = (timing.head_confirmations, timing.manifest_window);
        holds(confirmations < window, "timing.head_confirmations", confirmations, || {
            format!("it must be less than timing.manifest_window = {window}, or no vote would be on chain in time")
        })?;
        // A round is decided when the last votes are final.
        let lag = timing.head_confirmations.max(timing.finality_depth);
        let taken = timing.manifest_window + lag + timing.seal_window;
        holds(taken < timing.blocks_per_round, "timing.blocks_per_round", timing.blocks_per_round, || {
            format!(
                "manifest_window + seal_window + the greater of head_confirmations and finality_depth = {taken} must \
                 leave blocks for inner steps"
            )
        })
    }

    fn validate_gauntlet(&self) -> Result<(), RunSpecError> {
        let gauntlet = &self.gauntlet;
        // 31 contributions fit the five count bits of the fixed-point aggregation.
        within("gauntlet.contributors_max", gauntlet.contributors_max, 1, 31)?;
        within("gauntlet.newcomer_places", gauntlet.newcomer_places, 0, gauntlet.contributors_max)?;
        within("gauntlet.step_ratio", gauntlet.step_ratio, 0.001, 1.0)?;
        within("gauntlet.eval_sequences", gauntlet.eval_sequences, 1, 65_536)?;
        within("gauntlet.evaluations_max", gauntlet.evaluations_max, 0, 256)?;
        within("gauntlet.honesty_decay", gauntlet.honesty_decay, 0.0, 1.0)?;
        within("gauntlet.honesty_floor", gauntlet.honesty_floor, -1.0, 1.0)?;
        within("gauntlet.rating_beta", gauntlet.rating_beta, 0.1, 100.0)?;
        within("gauntlet.rating_tau", gauntlet.rating_tau, 0.0, 10.0)?;
        within("gauntlet.weight_exponent", gauntlet.weight_exponent, 0.0, 10.0)?;
        within("gauntlet.burn_share", gauntlet.burn_share, 0.0, 1.0)?;
        within("gauntlet.copy_overlap_max", gauntlet.copy_overlap_max, 0.05, 1.0)?;
        within("gauntlet.failure_decay", gauntlet.failure_decay, 0.0, 1.0)?;
        within("gauntlet.exclusion_rounds", gauntlet.exclusion_rounds, 0, 1 << 32)?;
        within("gauntlet.holding_chunks", gauntlet.holding_chunks, 1, 65_536)?;
        within("gauntlet.rounds_per_weights", gauntlet.rounds_per_weights, 1, 1 << 32)
    }
}

fn within<T: PartialOrd + std::fmt::Display>(key: &'static str, value: T, low: T, high: T) -> Result<(), RunSpecError> {
    if value >= low && value <= high {
        return Ok(());
    }
    Err(RunSpecError::OutOfRange { key, value: value.to_string(), range: format!("from {low} to {high}") })
}

fn holds(
    rule_holds: bool,
    key: &'static str,
    value: impl std::fmt::Display,
    rule: impl FnOnce() -> String,
) -> Result<(), RunSpecError> {
    if rule_holds { Ok(()) } else { Err(RunSpecError::Inconsistent { key, value: value.to_string(), rule: rule() }) }
}
