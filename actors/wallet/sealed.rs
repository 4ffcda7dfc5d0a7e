//! A key file under a password, as the official tools write it: `$NACL`, nonce, secretbox.
//!
//! The key is Argon2i (version 1.3) of the password with a salt that is the same for everybody, which is the format's
//! weakness: half a gigabyte and eight passes are what stands against guessing. The box is XSalsa20-Poly1305.

use argon2::{Algorithm, Argon2, Params, Version};
use crypto_secretbox::aead::Aead;
use crypto_secretbox::{KeyInit, XSalsa20Poly1305};

/// What a file under a password begins with.
pub(super) const MARK: &[u8] = b"$NACL";

const NONCE_BYTES: usize = 24;

const SALT: [u8; 16] = [0x13, 0x71, 0x83, 0xdf, 0xf1, 0x5a, 0x09, 0xbc, 0x9c, 0x90, 0xb5, 0x51, 0x87, 0x39, 0xe9, 0xb1];

/// What a guess of the password costs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    memory_kib: u32,
    passes: u32,
}

impl Cost {
    /// The format's: the only one that other tools open.
    pub(super) const OFFICIAL: Self = Self { memory_kib: 512 * 1024, passes: 8 };
}

/// Why nothing comes out of a box.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SealError {
    /// It is shorter than an empty one.
    CutOff,
    /// The password is wrong, or the file was changed: nobody can tell which.
    Password,
    /// The memory that the key's derivation needs is not there.
    Memory,
}

/// Puts bytes under a password; no nonce is used twice.
pub(super) fn seal(plain: &[u8], password: &str, nonce: [u8; NONCE_BYTES], cost: Cost) -> Result<Vec<u8>, SealError> {
    let boxed = cipher(password, cost)?.encrypt(&nonce.into(), plain).map_err(|_| SealError::Memory)?;
    Ok([MARK, &nonce, &boxed].concat())
}

/// What is under the password.
pub(super) fn unseal(sealed: &[u8], password: &str, cost: Cost) -> Result<Vec<u8>, SealError> {
    let rest = sealed.strip_prefix(MARK).ok_or(SealError::CutOff)?;
    let (nonce, boxed) = rest.split_first_chunk::<NONCE_BYTES>().ok_or(SealError::CutOff)?;
    cipher(password, cost)?.decrypt(nonce.into(), boxed).map_err(|_| SealError::Password)
}

fn cipher(password: &str, cost: Cost) -> Result<XSalsa20Poly1305, SealError> {
    let params = Params::new(cost.memory_kib, cost.passes, 1, Some(32)).map_err(|_| SealError::Memory)?;
    let mut key = [0; 32];
    let derived = Argon2::new(Algorithm::Argon2i, Version::V0x13, params).hash_password_into(
        password.as_bytes(),
        &SALT,
        &mut key,
    );
    derived.map_err(|_| SealError::Memory)?;
    Ok(XSalsa20Poly1305::new(&key.into()))
}

#[cfg(test)]
impl Cost {
    /// A guess is free: for tests of everything else.
    pub(super) const NONE: Self = Self { memory_kib: 8, passes: 1 };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_password_opens_what_it_sealed() {
        let sealed = seal(b"secret", "open sesame", [5; NONCE_BYTES], Cost::NONE).unwrap();
        assert!(sealed.starts_with(MARK));
        assert_eq!(unseal(&sealed, "open sesame", Cost::NONE).unwrap(), b"secret");
        assert_eq!(unseal(&sealed, "open Sesame", Cost::NONE), Err(SealError::Password));
        assert_eq!(unseal(&sealed[..28], "open sesame", Cost::NONE), Err(SealError::CutOff));
        assert_eq!(unseal(b"{}", "open sesame", Cost::NONE), Err(SealError::CutOff));
        for at in MARK.len()..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(unseal(&changed, "open sesame", Cost::NONE), Err(SealError::Password), "byte {at}");
        }
    }
}
