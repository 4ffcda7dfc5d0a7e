//! The passes on slices: row-major loops that the compiler turns into vector instructions.

use super::AdamWStep;
use super::lanes::{dot, exp, max, sigmoid, sum};

/// cos and sin of each position, or nothing to rotate by.
pub(super) type Angles<'a> = Option<(&'a [f32], &'a [f32])>;

/// Defines functions that run with the widest vector instructions of the processor.
///
/// The body must be inlined into the function that the dispatch compiles for each instruction set; a closure would be left
/// outside it, and be compiled for the oldest processor.
macro_rules! vectorised {
    ($($(#[$doc:meta])* fn $name:ident<$life:lifetime>($($arg:ident: $type:ty),* $(,)?) -> $out:ty $body:block)*) => {$(
        $(#[$doc])*
        pub(super) fn $name<$life>($($arg: $type),*) -> $out {
            struct Pass<$life> {
                $($arg: $type,)*
            }
            impl<$life> pulp::WithSimd for Pass<$life> {
                type Output = $out;

                #[inline(always)]
                fn with_simd<S: pulp::Simd>(self, _: S) -> $out {
                    let Self { $($arg),* } = self;
                    $body
                }
            }
            pulp::Arch::new().dispatch(Pass { $($arg),* })
        }
    )*};
}

vectorised! {
    /// y = x / √(mean(x²) + ε) · weight, row by row.
    fn rms_norm<'a>(x: &'a [f32], weight: &'a [f32], eps: f32, y: &'a mut [f32]) -> () {
        norm_rows(x, weight, eps, y);
    }

    /// sum += x; y is the norm of the sum.
    fn add_rms_norm<'a>(x: &'a [f32], sum: &'a mut [f32], weight: &'a [f32], eps: f32, y: &'a mut [f32]) -> () {
        for (sum, &x) in sum.iter_mut().zip(x) {
            *sum += x;
        }
        norm_rows(sum, weight, eps, y);
    }

    /// dx += the gradient at x; returns the weight's.
    fn rms_norm_backward<'a>(dy: &'a [f32], x: &'a [f32], weight: &'a [f32], eps: f32, dx: &'a mut [f32]) -> Vec<f32> {
        let width = weight.len();
        let (mut weighted, mut d_weight) = (vec![0.0; width], vec![0.0; width]);
        let rows = dy.chunks_exact(width).zip(x.chunks_exact(width));
        for ((dy, x), dx) in rows.zip(dx.chunks_exact_mut(width)) {
            let scale = norm_scale(x, eps);
            for ((to, &dy), &weight) in weighted.iter_mut().zip(dy).zip(weight) {
                *to = dy * weight;
            }
            let along = dot(&weighted, x) * scale * scale * scale / width as f32;
            for ((dx, &weighted), &x) in dx.iter_mut().zip(&weighted).zip(x) {
                *dx += scale * weighted - along * x;
            }
            for ((d_weight, &dy), &x) in d_weight.iter_mut().zip(dy).zip(x) {
                *d_weight += dy * x * scale;
            }
        }
        d_weight
    }

    /// `[batch, len, heads, width]` → `[batch, heads, len, width]`, rotated and scaled.
    fn split_heads<'a>(x: &'a [f32], shape: super::HeadShape, angles: Angles<'a>, factor: f32, out: &'a mut [f32]) -> () {
        for (place, row) in x.chunks_exact(shape.heads * shape.width).enumerate() {
            for (head, from) in row.chunks_exact(shape.width).enumerate() {
                let at = shape.offset(place, head);
                let to = &mut out[at..at + shape.width];
                rotate(from, to, angles_at(angles, place % shape.len, shape.width), 1.0, factor);
            }
        }
    }

    /// `[batch, heads, len, width]` → `[batch, len, heads, width]`, rotated back and scaled.
    fn merge_heads<'a>(x: &'a [f32], shape: super::HeadShape, angles: Angles<'a>, factor: f32, out: &'a mut [f32]) -> () {
        for (place, row) in out.chunks_exact_mut(shape.heads * shape.width).enumerate() {
            for (head, to) in row.chunks_exact_mut(shape.width).enumerate() {
                let at = shape.offset(place, head);
                let from = &x[at..at + shape.width];
                rotate(from, to, angles_at(angles, place % shape.len, shape.width), -1.0, factor);
            }
        }
    }

    /// Softmax of what each row sees; zero elsewhere.
    fn causal_softmax<'a>(scores: &'a mut [f32], len: usize) -> () {
        for (row_idx, row) in scores.chunks_exact_mut(len).enumerate() {
            let (seen, future) = row.split_at_mut(row_idx % len + 1);
            softmax_row(seen, 1.0);
            future.fill(0.0);
        }
    }

    /// d ← p · (d − Σ p·d) of what each row sees; zero elsewhere.
    fn causal_softmax_backward<'a>(d_probs: &'a mut [f32], probs: &'a [f32], len: usize) -> () {
        for (row_idx, (d_row, row)) in d_probs.chunks_exact_mut(len).zip(probs.chunks_exact(len)).enumerate() {
            let (seen, future) = d_row.split_at_mut(row_idx % len + 1);
            let along = dot(seen, row);
            for (d, &p) in seen.iter_mut().zip(row) {
                *d = p * (*d - along);
            }
            future.fill(0.0);
        }
    }

    /// silu(gate) · up.
    fn swiglu<'a>(gate: &'a [f32], up: &'a [f32], out: &'a mut [f32]) -> () {
        for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate * sigmoid(gate) * up;
        }
    }

    /// Replaces gate and up by their gradients.
    fn swiglu_backward<'a>(d_out: &'a [f32], gate: &'a mut [f32], up: &'a mut [f32]) -> () {
        for ((gate, up), &d) in gate.iter_mut().zip(up).zip(d_out) {
            let share = sigmoid(*gate);
            let silu = *gate * share;
            *gate = d * *up * (share + silu * (1.0 - share));
            *up = d * silu;
        }
    }

    /// Replaces logits by factor · (softmax − one-hot); returns each row's loss.
    fn cross_entropy<'a>(logits: &'a mut [f32], targets: &'a [i64], factor: f32) -> Vec<f64> {
        let vocab = logits.len() / targets.len();
        let mut losses = Vec::with_capacity(targets.len());
        for (row, &target) in logits.chunks_exact_mut(vocab).zip(targets) {
            let target = usize::try_from(target).expect("a token is below the vocabulary's size");
            let logit = row[target];
            let (top, total) = softmax_row(row, factor);
            row[target] -= factor;
            losses.push(f64::from(total).ln() + f64::from(top) - f64::from(logit));
        }
        losses
    }

    /// Σ x², summed in f32 within a row and in f64 over the rows.
    fn square_norm<'a>(x: &'a [f32], width: usize) -> f64 {
        x.chunks_exact(width).map(|row| f64::from(dot(row, row))).sum()
    }

    /// One AdamW step in place.
    fn adamw<'a>(param: &'a mut [f32], grad: &'a [f32], averages: [&'a mut [f32]; 2], step: &'a AdamWStep) -> () {
        let [first, second] = averages;
        for ((param, &grad), (first, second)) in param.iter_mut().zip(grad).zip(first.iter_mut().zip(second)) {
            let grad = grad * step.grad_factor;
            *first += (grad - *first) * step.first_share;
            *second = *second * step.second_keep + grad * grad * step.second_share;
            let root = second.sqrt() / step.root_divisor + step.eps;
            *param = *param * step.param_keep - step.rate * (*first / root);
        }
    }
}

/// 1 / √(mean(x²) + ε).
#[inline(always)]
fn norm_scale(x: &[f32], eps: f32) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt()
}

#[inline(always)]
fn norm_rows(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let width = weight.len();
    for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
        let scale = norm_scale(x, eps);
        for ((y, &x), &weight) in y.iter_mut().zip(x).zip(weight) {
            *y = x * scale * weight;
        }
    }
}

/// Replaces a row by factor · softmax; returns (largest, Σ e^(x − largest)).
#[inline(always)]
fn softmax_row(row: &mut [f32], factor: f32) -> (f32, f32) {
    let top = max(row);
    for x in row.iter_mut() {
        *x = exp(*x - top);
    }
    let total = sum(row);
    let scale = factor / total;
    for x in row.iter_mut() {
        *x *= scale;
    }
    (top, total)
}

/// The angles of position `t`, out of the tables of all positions.
#[inline(always)]
fn angles_at(angles: Angles<'_>, t: usize, width: usize) -> Angles<'_> {
    let range = t * (width / 2)..(t + 1) * (width / 2);
    angles.map(|(cos, sin)| (&cos[range.clone()], &sin[range]))
}

/// Rotates the pair (i, i + half) of a head by its angle, forwards or (`turn` −1) back, and scales it.
#[inline(always)]
fn rotate(from: &[f32], to: &mut [f32], angles: Angles<'_>, turn: f32, factor: f32) {
    let Some((cos, sin)) = angles else {
        for (to, &from) in to.iter_mut().zip(from) {
            *to = from * factor;
        }
        return;
    };
    let (from_low, from_high) = from.split_at(cos.len());
    let (to_low, to_high) = to.split_at_mut(cos.len());
    let angles = cos.iter().zip(sin);
    let pairs = from_low.iter().zip(from_high).zip(angles);
    for ((to_low, to_high), ((&low, &high), (&cos, &sin))) in to_low.iter_mut().zip(to_high).zip(pairs) {
        let (low, high, sin) = (low * factor, high * factor, sin * turn);
        *to_low = low * cos - high * sin;
        *to_high = high * cos + low * sin;
    }
}
