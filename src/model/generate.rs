//! Text from a trained model, token by token.
//!
//! Every token runs the whole window through the model again: there is no cache of keys and values, which keeps one forward
//! pass for training, scoring and generation. For a model that trains on a node this costs milliseconds a token.

use super::llama::Llama;

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 always takes the likeliest token.
    pub temperature: f64,
    /// Only this many of the likeliest tokens are drawn from; 0 means all.
    pub top_k: usize,
    /// The same seed gives the same text.
    pub seed: u64,
}

/// Continues `prompt` without end; take as many tokens as are wanted. Only the last `context_len` tokens are seen.
///
/// # Panics
/// When the prompt is empty.
pub fn generate<'a>(model: &'a Llama, prompt: &[u32], sampling: Sampling) -> impl Iterator<Item = u32> + 'a {
    assert!(!prompt.is_empty(), "a prompt has a token");
    let mut window = prompt.to_vec();
    let mut draws = blake3::Hasher::new_derive_key("convoke 2026-11 sampling v1")
        .update(&sampling.seed.to_le_bytes())
        .finalize_xof();
    std::iter::repeat_with(move || {
        let excess = window.len().saturating_sub(model.spec().context_len);
        window.drain(..excess);
        let mut bytes = [0; 8];
        draws.fill(&mut bytes);
        let uniform = (u64::from_le_bytes(bytes) >> 11) as f64 / (1_u64 << 53) as f64;
        let token = choose(&model.next_logits(&window), sampling, uniform);
        window.push(token);
        token
    })
}

/// The token at which the running sum of the softmax passes `uniform` (in `[0, 1)`), likeliest token first.
fn choose(logits: &[f32], sampling: Sampling, uniform: f64) -> u32 {
    let mut ranked: Vec<u32> = (0..logits.len() as u32).collect();
    let logit = |token: u32| f64::from(logits[token as usize]);
    ranked.sort_unstable_by(|&a, &b| logit(b).total_cmp(&logit(a)).then(a.cmp(&b)));
    if sampling.temperature <= 0.0 {
        return ranked[0];
    }
    if sampling.top_k > 0 {
        ranked.truncate(sampling.top_k);
    }
    let weight = |token: u32| ((logit(token) - logit(ranked[0])) / sampling.temperature).exp();
    let total: f64 = ranked.iter().map(|&token| weight(token)).sum();
    let mut left = uniform * total;
    for &token in &ranked {
        left -= weight(token);
        if left < 0.0 {
            return token;
        }
    }
    ranked[ranked.len() - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 4] = [0.0, 2.0, 1.0, -1.0];

    #[test]
    fn without_temperature_the_likeliest_token_is_taken() {
        assert_eq!(choose(&LOGITS, Sampling { temperature: 0.0, top_k: 0, seed: 0 }, 0.99), 1);
    }

    #[test]
    fn tokens_are_drawn_in_proportion_to_their_softmax() {
        let sampling = Sampling { temperature: 1.0, top_k: 0, seed: 0 };
        let total: f64 = LOGITS.iter().map(|&logit| f64::from(logit).exp()).sum();
        for (token, &logit) in LOGITS.iter().enumerate() {
            let hits = (0..10_000).filter(|i| choose(&LOGITS, sampling, f64::from(*i) / 1e4) == token as u32).count();
            assert!((hits as f64 / 1e4 - f64::from(logit).exp() / total).abs() < 2e-4, "token {token}");
        }
    }

    #[test]
    fn only_the_top_k_are_drawn() {
        let sampling = Sampling { temperature: 5.0, top_k: 2, seed: 0 };
        assert!((0..1000).all(|i| [1, 2].contains(&choose(&LOGITS, sampling, f64::from(i) / 1e3))));
    }
}
