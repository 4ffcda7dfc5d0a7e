//! Accounts as people write them: SS58, Substrate's Base58 with a network number and a checksum.
//!
//! Subtensor uses the general network, 42, as every official tool does. The checksum is the first two bytes of BLAKE2b
//! over `SS58PRE`, the network and the account.

use blake2::{Blake2b512, Digest};

use crate::terms::Hotkey;

/// The general network of Substrate, and Subtensor's.
const NETWORK: u8 = 42;

const ALPHABET: &[u8; 58] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";

/// Network, account, checksum.
const BYTES: usize = 1 + 32 + 2;

/// What those make in Base58, whatever the account.
const LETTERS: usize = 48;

/// Why text is no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum AddressError {
    /// A letter that Base58 leaves out, or too many or too few of them.
    #[error("not an SS58 address of 48 letters")]
    Form,
    /// An address of another chain.
    #[error("an address of network {network}, not of {NETWORK}")]
    Network {
        /// Which.
        network: u8,
    },
    /// A letter was mistyped.
    #[error("the address's checksum is wrong: a letter was mistyped")]
    Checksum,
}

/// The account's address, `5…`.
#[must_use]
pub fn to_ss58(account: &Hotkey) -> String {
    let mut bytes = [0; BYTES];
    bytes[0] = NETWORK;
    bytes[1..33].copy_from_slice(&account.0);
    let checksum = checksum(&bytes[..33]);
    bytes[33..].copy_from_slice(&checksum);
    // Digits of the number that the bytes are, from the lowest; it begins with 42, so no letter for a zero is lost.
    let mut digits: Vec<u8> = Vec::with_capacity(48);
    for byte in bytes {
        let mut carry = u32::from(byte);
        for digit in &mut digits {
            carry += u32::from(*digit) << 8;
            *digit = (carry % 58).to_le_bytes()[0];
            carry /= 58;
        }
        while carry > 0 {
            digits.push((carry % 58).to_le_bytes()[0]);
            carry /= 58;
        }
    }
    digits.iter().rev().map(|&digit| char::from(ALPHABET[usize::from(digit)])).collect()
}

/// The account with this address.
///
/// # Errors
/// Whatever no official tool would have written: ask for it again.
pub fn from_ss58(address: &str) -> Result<Hotkey, AddressError> {
    let mut bytes = [0_u8; BYTES];
    if address.len() > LETTERS {
        return Err(AddressError::Form);
    }
    for letter in address.bytes() {
        let digit = ALPHABET.iter().position(|known| *known == letter).ok_or(AddressError::Form)?;
        let mut carry = u32::try_from(digit).map_err(|_| AddressError::Form)?;
        for byte in bytes.iter_mut().rev() {
            carry += u32::from(*byte) * 58;
            *byte = carry.to_le_bytes()[0];
            carry >>= 8;
        }
        if carry > 0 {
            return Err(AddressError::Form);
        }
    }
    let (head, last) = bytes.split_at(33);
    match head {
        // A number that is too small is an address that was cut off.
        [0, ..] => Err(AddressError::Form),
        [network, ..] if *network != NETWORK => Err(AddressError::Network { network: *network }),
        // Zeros in front change no number: only one of its spellings is the address.
        _ if address.len() != LETTERS => Err(AddressError::Form),
        _ if checksum(head) != last => Err(AddressError::Checksum),
        [_, account @ ..] => account.try_into().map(Hotkey).map_err(|_| AddressError::Form),
        [] => Err(AddressError::Form),
    }
}

fn checksum(bytes: &[u8]) -> [u8; 2] {
    let digest = Blake2b512::new().chain_update(b"SS58PRE").chain_update(bytes).finalize();
    [digest[0], digest[1]]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::hotkey::HotkeyPair;

    const ALICE: &str = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY";

    #[test]
    fn the_well_known_development_account_has_its_well_known_address() {
        let seed = "e5be9a5092b81bca64be81d212e7f2f9eba183bb7a90954f7b76361f6edb5c0a";
        let seed = std::array::from_fn(|i| u8::from_str_radix(&seed[2 * i..2 * i + 2], 16).unwrap());
        let alice = HotkeyPair::from_seed(&seed).hotkey();
        assert_eq!(to_ss58(&alice), ALICE);
        assert_eq!(from_ss58(ALICE), Ok(alice));
    }

    #[test]
    fn a_mistyped_or_foreign_address_is_refused() {
        assert_eq!(from_ss58(&ALICE.replace("QY", "QZ")), Err(AddressError::Checksum));
        assert_eq!(from_ss58(&ALICE.replace('5', "0")), Err(AddressError::Form));
        // The same account on Polkadot's own network, 0, is shorter; Kusama's is 2.
        assert_eq!(from_ss58("15oF4uVJwmo4TdGW7VfQxNLavjCXviqxT9S1MgbjMNHr6Sp5"), Err(AddressError::Form));
        let kusama = "HNZata7iMYWmk5RvZRTiAsSDhV8366zq2YGb3tLH5Upf74F";
        assert_eq!(from_ss58(kusama), Err(AddressError::Network { network: 2 }));
        assert_eq!(from_ss58(""), Err(AddressError::Form));
        assert_eq!(from_ss58(&"z".repeat(48)), Err(AddressError::Form));
        assert_eq!(from_ss58(&format!("1{}", &ALICE[..47])), Err(AddressError::Form));
    }

    proptest! {
        #[test]
        fn an_address_is_its_accounts_alone(account in any::<[u8; 32]>(), junk in "[1-9A-Za-z]{0,52}") {
            let address = to_ss58(&Hotkey(account));
            prop_assert_eq!(address.len(), 48);
            prop_assert!(address.starts_with('5'));
            prop_assert_eq!(from_ss58(&address), Ok(Hotkey(account)));
            if let Ok(read) = from_ss58(&junk) {
                prop_assert_eq!(to_ss58(&read), junk);
            }
        }
    }
}
