//! A node's identity on chain: an sr25519 key pair, its signatures, and their verification.
//!
//! Signatures are deterministic (the nonce is derived from the secret and the message alone), so that signing the same
//! payload twice gives the same bytes: one content, one encoding (C-2).

use schnorrkel::{ExpansionMode, Keypair, MiniSecretKey, PublicKey, SecretKey, Signature};

use crate::terms::Hotkey;

/// Substrate's signing context; a signature made here verifies on chain.
const CONTEXT: &[u8] = b"substrate";

/// Bytes of a signature.
pub const SIGNATURE_LEN: usize = 64;

/// Bytes of an expanded secret.
pub const EXPANDED_LEN: usize = 64;

/// The secret and public half of a hotkey.
#[derive(Clone)]
pub struct HotkeyPair(Keypair);

impl HotkeyPair {
    /// The pair of a 32-byte mini secret, as Substrate derives it.
    ///
    /// # Panics
    /// Never: 32 bytes are always a mini secret.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let secret = MiniSecretKey::from_bytes(seed).expect("32 bytes are a mini secret");
        Self(secret.expand_to_keypair(ExpansionMode::Ed25519))
    }

    /// The pair of an expanded secret, scalar and nonce, in either of the two layouts that key files have: the scalar as
    /// it is, or times eight as ed25519 has it. `None` unless it is the pair of this public key.
    #[must_use]
    pub fn from_expanded(secret: &[u8; EXPANDED_LEN], public: &Hotkey) -> Option<Self> {
        let layouts = [SecretKey::from_bytes(secret), SecretKey::from_ed25519_bytes(secret)];
        let mut pairs = layouts.into_iter().flatten().map(|secret| Self(secret.to_keypair()));
        pairs.find(|pair| pair.hotkey() == *public)
    }

    /// The expanded secret as the official key files have it, the scalar as it is; [`Self::from_expanded`] reads it.
    #[must_use]
    pub fn expanded(&self) -> [u8; EXPANDED_LEN] {
        self.0.secret.to_bytes()
    }

    /// The public half.
    #[must_use]
    pub fn hotkey(&self) -> Hotkey {
        Hotkey(self.0.public.to_bytes())
    }

    /// The signature of `message`; the same one every time.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_LEN] {
        let transcript = schnorrkel::context::signing_context(CONTEXT).bytes(message);
        self.0.sign(schnorrkel::context::attach_rng(transcript, NoRandomness)).to_bytes()
    }
}

impl std::fmt::Debug for HotkeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HotkeyPair({})", self.hotkey().short())
    }
}

/// Whether `signature` is `hotkey`'s over `message`.
#[must_use]
pub fn verify(hotkey: &Hotkey, message: &[u8], signature: &[u8; SIGNATURE_LEN]) -> bool {
    let (Ok(public), Ok(signature)) = (PublicKey::from_bytes(&hotkey.0), Signature::from_bytes(signature)) else {
        return false;
    };
    public.verify_simple(CONTEXT, message, &signature).is_ok()
}

/// Stands in for the extra randomness that schnorrkel mixes into a nonce beside the secret and the message; without it
/// the nonce is still secret and unique to the message, as in RFC 6979.
struct NoRandomness;

impl rand_core::RngCore for NoRandomness {
    fn next_u32(&mut self) -> u32 {
        0
    }

    fn next_u64(&mut self) -> u64 {
        0
    }

    fn fill_bytes(&mut self, dest: &mut [u8]) {
        dest.fill(0);
    }

    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), rand_core::Error> {
        dest.fill(0);
        Ok(())
    }
}

impl rand_core::CryptoRng for NoRandomness {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_deterministic_and_binds_key_and_message() {
        let pair = HotkeyPair::from_seed(&[7; 32]);
        let signature = pair.sign(b"payload");
        assert_eq!(signature, pair.sign(b"payload"));
        assert!(verify(&pair.hotkey(), b"payload", &signature));
        assert!(!verify(&pair.hotkey(), b"payloae", &signature));
        assert!(!verify(&HotkeyPair::from_seed(&[8; 32]).hotkey(), b"payload", &signature));
        let mut flipped = signature;
        flipped[3] ^= 1;
        assert!(!verify(&pair.hotkey(), b"payload", &flipped));
    }

    #[test]
    fn an_expanded_secret_gives_its_pair_back_in_both_layouts_and_for_its_own_key_only() {
        let pair = HotkeyPair::from_seed(&[7; 32]);
        let signature = pair.sign(b"payload");
        for secret in [pair.expanded(), pair.0.secret.to_ed25519_bytes()] {
            let read = HotkeyPair::from_expanded(&secret, &pair.hotkey()).unwrap();
            assert_eq!(read.sign(b"payload"), signature);
            assert!(HotkeyPair::from_expanded(&secret, &HotkeyPair::from_seed(&[8; 32]).hotkey()).is_none());
        }
        assert!(HotkeyPair::from_expanded(&[0xff; EXPANDED_LEN], &pair.hotkey()).is_none());
    }

    #[test]
    fn the_well_known_development_key_has_its_well_known_address() {
        // //Alice's mini secret and public key, as every Substrate development chain funds them.
        let seed = "e5be9a5092b81bca64be81d212e7f2f9eba183bb7a90954f7b76361f6edb5c0a";
        let mut bytes = [0; 32];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&seed[2 * i..2 * i + 2], 16).unwrap();
        }
        assert_eq!(
            HotkeyPair::from_seed(&bytes).hotkey().to_string(),
            "d43593c715fdd31c61141abd04a99fd6822c8558854ccde39a5684e7a56da27d"
        );
    }
}
